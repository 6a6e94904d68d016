"""Hooks of MkDocs: pages from other folders of the repository, links to it, generated text."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

from docs.hooks import command_line, measured, tables
from docs.hooks.links import filled, for_the_site, is_external, resolved

ROOT = Path(__file__).parents[2]
_ELSEWHERE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "notebooks/README.md",
    "notebooks/*.ipynb",
    "obscura_jax/models/tiny/README.md",
    "tools/*.png",
)
_GENERATED = {
    "command line": command_line.as_markdown,
    "TPUs": tables.tpus,
    "GPUs": tables.gpus,
    "dialects": tables.dialects,
    "report of two programs": tables.program_report,
    "report of two GPTs": tables.gpt_report,
}


def site_files() -> dict[str, str]:
    """Return the files of the repository that are part of the site, and their paths there."""
    outside = [path for pattern in _ELSEWHERE for path in sorted(ROOT.glob(pattern))]
    inside = sorted((ROOT / "docs").rglob("*.md"))
    files = [path.relative_to(ROOT).as_posix() for path in (*outside, *inside)]
    return {file: file.removeprefix("docs/") for file in files}


@event_priority(100)  # before mkdocs-jupyter, which takes the notebooks from the list
def on_files(files: Files, config: Any) -> Files:
    """Add the files from outside of `docs`."""
    for file in site_files():
        if not file.startswith("docs/"):
            files.append(File(file, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Return the text of a page with generated parts, and with links that work on the site."""
    file = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    try:
        if names := measured.differing(markdown):
            raise ValueError(
                f"{file} has other figures than docs/data: {', '.join(names)}; run `make tables`"
            )
        return for_the_site(filled(markdown, _GENERATED), file, ROOT, site_files())
    except ValueError as error:
        raise PluginError(str(error)) from error


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Return a notebook's page with links that work on the site, and mend its list of contents.

    mkdocs-jupyter leaves code out of that list, and so out of the anchors that it links to.
    """
    file = Path(page.file.abs_src_path).relative_to(ROOT).as_posix()
    if not file.endswith(".ipynb"):
        return html
    headings = re.findall(r'<h[1-6] id="([^"]*)"[^>]*>(.*?)<a ', html, re.DOTALL)
    for entry, (anchor, title) in zip(_entries(page.toc), headings, strict=True):
        entry.id, entry.title = anchor, re.sub("<.*?>", "", title)
    return re.sub('(?<=<a href=")[^"#]+', lambda match: _url(match[0], file, page, files), html)


def _entries(contents: Any) -> Iterator[Any]:
    """Yield all entries of a list of contents, in order."""
    for entry in contents:
        yield entry
        yield from _entries(entry.children)


def _url(target: str, file: str, page: Any, files: Files) -> str:
    """Return the address of a link in a notebook, relative to the notebook's page."""
    if is_external(target):
        return target
    path = site_files().get(resolved(file, target)[0], "")
    if (there := files.get_file_from_path(path)) is None:
        raise PluginError(f"{file} links to {target}, which is not part of the site")
    return there.url_relative_to(page.file)
