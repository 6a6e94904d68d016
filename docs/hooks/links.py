"""Links of Markdown pages: find them, and turn links of the repository into links of the site."""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

# A fenced block or a span of code, in which nothing is a link, or else a link or an image.
_LINK = re.compile(
    r"^[ ]*```.*?^[ ]*```|(`+)[^`].*?\1(?!`)"
    r"|(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^()\s]+(?:\([^()\s]*\))?)\)",
    re.MULTILINE | re.DOTALL,
)
_OUTSIDE = re.compile(r"[a-z][a-z0-9+.-]*:")  # a scheme, such as mailto:


def links(text: str) -> Iterator[str]:
    """Yield the target of every link and image of a page."""
    for match in _LINK.finditer(text):
        if match["target"]:
            yield match["target"]


def is_external(target: str) -> bool:
    """Tell whether a target names another computer, which the site does not check."""
    return bool(_OUTSIDE.match(target))


def resolved(page: str, target: str) -> tuple[str, str]:
    """Return the file of the repository and the anchor that a link on a page leads to.

    Args:
        page: the page's file, relative to the root of the repository.
        target: the link, relative to the page.

    Raises:
        ValueError: if the link leaves the repository.
    """
    path, _, anchor = target.partition("#")
    parts: list[str] = []
    for part in (PurePosixPath(page).parent / path).parts if path else PurePosixPath(page).parts:
        if part == "..":
            if not parts:
                raise ValueError(f"{page} links to {target}, which is outside of the repository")
            parts.pop()
        else:
            parts.append(part)
    return "/".join(parts), anchor


def for_the_site(text: str, page: str, root: Path, site: Mapping[str, str]) -> str:
    """Return a page with links that work on the site; other files of the repository lose theirs.

    Args:
        text: the page's Markdown.
        page: its file, relative to the root of the repository.
        root: the root of the repository.
        site: for each file that is part of the site, its path there.

    Raises:
        ValueError: if a link names no file of the repository.
    """
    here = PurePosixPath(site[page]).parent

    def link(match: re.Match[str]) -> str:
        target = match["target"]
        if not target or is_external(target):
            return match[0]
        file, anchor = resolved(page, target)
        if not (root / file).exists():
            raise ValueError(f"{page} links to {target}, which does not exist; correct the link")
        if file not in site:
            return match["text"]
        there = _relative(PurePosixPath(site[file]), here) if file != page else ""
        if file.endswith(".ipynb"):  # the site's notebooks have the anchors of other pages
            anchor = re.sub(r"[^\w-]", "", anchor.lower())
        return f"{match['image']}[{match['text']}]({there}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(link, text)


def filled(text: str, generators: Mapping[str, Callable[[], str]]) -> str:
    """Return a page with each line `<!-- generated: NAME -->` replaced by generated Markdown."""

    def generated(match: re.Match[str]) -> str:
        if match[1] not in generators:
            names = ", ".join(sorted(generators))
            raise ValueError(f"nothing generates {match[1]!r}; choose from {names}")
        return generators[match[1]]()

    return re.sub(r"(?m)^<!-- generated: (.*?) -->$", generated, text)


def _relative(path: PurePosixPath, folder: PurePosixPath) -> str:
    """Return a path relative to a folder; both are relative to the root of the site."""
    shared = 0
    while path.parts[shared : shared + 1] == folder.parts[shared : shared + 1] != ():
        shared += 1
    up = [".."] * (len(folder.parts) - shared)
    return "/".join([*up, *path.parts[shared:]])
