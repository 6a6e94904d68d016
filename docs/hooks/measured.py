"""The tables of measured figures in the pages: write them from docs/data, or find old ones.

    python -m docs.hooks.measured          # or: make tables

writes the tables into the pages. A table is between the marks `<!-- measured: NAME -->` and
`<!-- end -->`, so that it can also be read where the page is not rendered by MkDocs.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from docs.hooks.data_files import DATA, ROOT, load, write
from docs.hooks.measured_tables import TABLES, Row, release
from obscura_jax.atomic_files import replace_text

Tables = Mapping[str, Callable[[], str]]

_MARKED = re.compile(r"(?ms)^<!-- measured: (?P<name>.*?) -->\n(?P<table>.*?)^<!-- end -->$")


def main() -> None:
    """Record the release that was measured last, write all tables, and print the changed pages."""
    history, last = load("releases", facts=()), release(load("generation"), load("training"))
    write(DATA / "releases.json", {**history, "rows": with_release(history["rows"], last)})
    for path in pages():
        text = path.read_text("utf-8")
        if (new := rewritten(text)) != text:
            replace_text(path, new)
            print(path.relative_to(ROOT))


def pages() -> list[Path]:
    """Return the README and the pages in docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_release(rows: Sequence[Row], last: Row) -> list[Row]:
    """Return the history with the row that was measured last, in place of one of its version."""
    return [*(row for row in rows if row["version"] != last["version"]), last]


def rewritten(text: str, tables: Tables = TABLES) -> str:
    """Return a page with the table of each pair of marks written again.

    Raises:
        ValueError: if a mark names no table, or has no end.
    """

    def table(match: re.Match[str]) -> str:
        if match["name"] not in tables:
            raise ValueError(
                f"no table is named {match['name']!r}; choose from {', '.join(tables)}"
            )
        return f"<!-- measured: {match['name']} -->\n\n{tables[match['name']]()}\n\n<!-- end -->"

    if len(re.findall("(?m)^<!-- measured: ", text)) != len(_MARKED.findall(text)):
        raise ValueError("a table has no end; add the line <!-- end -->")
    return _MARKED.sub(table, text)


def differing(text: str) -> list[str]:
    """Return the names of the tables of a page that differ from their data."""
    again = _MARKED.finditer(rewritten(text))
    pairs = zip(_MARKED.finditer(text), again, strict=True)
    return [old["name"] for old, new in pairs if old["table"] != new["table"]]


if __name__ == "__main__":
    main()
