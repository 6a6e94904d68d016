"""Check links: between the repository's pages of text, and between the pages of the built site."""

import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from docs.hooks.links import is_external, links, resolved


def broken_in(page: str, text: str, root: Path) -> list[str]:
    """Return the links of a page that lead to no file of the repository, or to no heading of it."""
    found = []
    for target in links(text):
        if is_external(target):
            continue
        file, anchor = resolved(page, target)
        if not (root / file).exists() or (anchor and anchor not in anchors(root / file)):
            found.append(f"{page} links to {target}")
    return found


@cache
def anchors(path: Path) -> frozenset[str]:
    """Return the anchors of the headings of a Markdown file or a notebook."""
    text = path.read_text("utf-8")
    if path.suffix == ".ipynb":  # Jupyter keeps all characters of a heading
        headings = re.findall(r"(?m)^#+ (.*)$", "\n".join(_cells(text)))
        return frozenset(heading.replace("`", "").replace(" ", "-") for heading in headings)
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    return frozenset(
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    )


def markdown_of(path: Path) -> str:
    """Return the text of a Markdown file, or of a notebook's cells of text."""
    text = path.read_text("utf-8")
    return "\n\n".join(_cells(text)) if path.suffix == ".ipynb" else text


class _Page(HTMLParser):
    """The links, the loaded files and the anchors of a page of the site."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value for name, value in attrs if value}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and "href" in values:
            self.loads.append(values["href"])
        elif "src" in values:
            self.loads.append(values["src"])


def faults_of_site(folder: Path) -> Iterator[str]:
    """Yield what is wrong in a built site: files from a network, and links that lead nowhere."""
    pages = {path: _Page(path.read_text("utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(folder)
        if name.name == "404.html":  # a server shows it; its links start at the root
            continue
        for target in page.loads:
            if re.match(r"(\w+:)?//", target):
                yield f"{name} loads {target}"
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not there.is_file() or (
                anchor and there in pages and anchor not in pages[there].anchors
            ):
                yield f"{name} links to {target}"
    for path in folder.rglob("*.css"):
        for target in re.findall(r"(?:url\(|@import )\W*((?:\w+:)?//[^)\s]+)", path.read_text()):
            yield f"{path.relative_to(folder)} loads {target}"


def _cells(text: str) -> list[str]:
    """Return the cells of text of a notebook."""
    cells = nbformat.reads(text, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]
