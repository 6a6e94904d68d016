"""Format the comparison of two programs as one HTML page; the template is `programs.html`."""

import linecache
import textwrap
from dataclasses import dataclass

from obscura_jax.parity.findings import Finding, Place, Report
from obscura_jax.parity.json_report import versions
from obscura_jax.parity.operation_rows import rows_of
from obscura_jax.parity.page import page
from obscura_jax.parity.wording import (
    constants_alone,
    effect_of,
    grouped,
    heading,
    mend_of,
    number,
    operation_of,
    verdict_line,
    where,
    without_twins,
)

_CONTEXT = 2  # lines before and after the line of a finding
_CARDS = 8  # cards that are visible at first


@dataclass(frozen=True)
class Line:
    """A line of an excerpt: its number, its text, and whether the finding is at this line."""

    number: int
    text: str
    marked: bool


@dataclass(frozen=True)
class Part:
    """One side of a finding.

    Attributes:
        side: "PyTorch" or "JAX".
        at: the line, such as "model.py:40".
        function: the function that contains the line, or "".
        operation: the operation with its shape and path.
        lines: the line of code and those around it.
    """

    side: str
    at: str
    function: str
    operation: str
    lines: list[Line]


@dataclass(frozen=True)
class Card:
    """A finding as the page shows it.

    Attributes:
        heading: what differs.
        effect: by how much that changes the output, or "".
        mend: the mend, or "".
        relation: how the results relate, or "".
        parts: the sides that have an operation there.
        operands: operands by who uses them, as (class, title, names).
    """

    heading: str
    effect: str
    mend: str
    relation: str
    parts: list[Part]
    operands: list[tuple[str, str, tuple[str, ...]]]


def as_html(report: Report) -> str:
    """Return a page with the verdict, the findings with their code, and all other results."""
    sections = (
        ("places where the programs part", report.findings),
        ("places where the gradients part", report.gradient_findings),
    )
    return page(
        "programs.html",
        report=report,
        title=" and ".join(f"{side.program} in {side.name}" for side in report.sides),
        sentence=verdict_line(report),
        sections=[(title, [_card(f) for f in grouped(found)]) for title, found in sections],
        visible=_CARDS,
        gradients=sorted(report.gradients, key=lambda gradient: gradient.equal),
        different=sum(not gradient.equal for gradient in report.gradients),
        rows=list(rows_of(report.operations)),
        number=number,
        constants_alone=constants_alone,
        without_twins=without_twins,
        versions=versions(),
    )


def _card(finding: Finding) -> Card:
    sides = (("PyTorch", finding.torch), ("JAX", finding.jax))
    operands = (
        ("both", "both use", finding.shared),
        ("torch", "only PyTorch uses", finding.torch_only),
        ("jax", "only JAX uses", finding.jax_only),
    )
    return Card(
        heading(finding),
        effect_of(finding),
        mend_of(finding),
        finding.relation,
        [_part(side, place) for side, place in sides if place is not None],
        [(kind, title, names) for kind, title, names in operands if names],
    )


def _part(side: str, place: Place) -> Part:
    function = place.source.function if place.source else ""
    return Part(side, where(place), function, operation_of(place), excerpt(place))


def excerpt(place: Place) -> list[Line]:
    """Return the line of a place and those around it.

    If the file is missing or has changed, it is only the line that the report contains.
    """
    source = place.source
    if source is None:
        return []
    lines = [line.rstrip().expandtabs(4) for line in linecache.getlines(source.file)]
    known = lines[source.line - 1] if 0 < source.line <= len(lines) else ""
    if known.strip() != place.code.expandtabs(4).strip() or not known.strip():
        return [Line(source.line, place.code, True)] if place.code else []
    first, last = max(source.line - _CONTEXT, 1), min(source.line + _CONTEXT, len(lines))
    while not lines[first - 1]:
        first += 1
    while not lines[last - 1]:
        last -= 1
    text = textwrap.dedent("\n".join(lines[first - 1 : last]))
    return [Line(n, code, n == source.line) for n, code in enumerate(text.split("\n"), first)]
