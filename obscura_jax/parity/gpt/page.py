"""Format the lab's report as one HTML page that needs no other file and no network.

The template is `page.html`. This module computes the geometry of the charts, which show differences
on a logarithmic scale along the forward pass. Lengths are in pixels, so text keeps its size on any
screen.
"""

import math
from dataclasses import dataclass

from obscura_jax.parity.gpt.compare import Finding
from obscura_jax.parity.gpt.report import verdict
from obscura_jax.parity.gpt.verdict import Report, Section
from obscura_jax.parity.gpt.wording import sentence
from obscura_jax.parity.json_report import versions
from obscura_jax.parity.page import page
from obscura_jax.parity.wording import grouped

_PLOT = 200  # pixels from the largest to the smallest number
_TOP, _LEAST, _MOST = 26, -17, 1  # room for "NaN"; exponents
_LETTER = 6.4  # width of a letter at 11 pixels, at most on average
_NARROWEST, _WIDEST, _USUAL = 16, 48, 720  # limits of a column's width; usual width of a chart


@dataclass(frozen=True)
class Column:
    """A tensor in a chart: its position, and the heights of its marks."""

    row: Finding
    x: float
    float32: float
    float64: float
    expected64: float


@dataclass(frozen=True)
class Chart:
    """The chart of a section; lengths are in pixels.

    Attributes:
        columns: one per tensor.
        step: width of a column.
        width: width of the chart.
        height: height of the chart, with the names of the tensors.
        bottom: height at which the names begin.
        ticks: height and text of each mark on the axis.
    """

    columns: list[Column]
    step: float
    width: float
    height: float
    bottom: float
    ticks: list[tuple[float, str]]

    def line(self, of: str) -> str:
        """Return the SVG path of the quantity `of` through all columns."""
        return "M" + "L".join(f"{c.x:.1f} {getattr(c, of):.1f}" for c in self.columns)


def as_html(report: Report) -> str:
    """Return a page with the verdict and, for each section, lines, a chart and all tensors."""
    sections = [(section, chart(section)) for section in report.sections]
    return page(
        "gpt/page.html",
        report=report,
        sentence=verdict(report),
        sections=sections,
        grouped=grouped,
        in_words=sentence,
        versions=versions(),
    )


def chart(section: Section) -> Chart:
    """Place the findings of a section."""
    rows = section.findings
    step = min(max(_USUAL / max(len(rows), 1), _NARROWEST), _WIDEST)
    columns = [
        Column(
            row,
            (i + 0.5) * step,
            _height(row.float32),
            _height(row.float64),
            _height(row.expected64),
        )
        for i, row in enumerate(rows)
    ]
    ticks = [(_height(10.0**e), f"1e{e}" if e else "1") for e in range(-16, _MOST, 4)]
    ticks.append((_height(0), "0"))
    if not all(math.isfinite(row.float64) for row in rows):
        ticks.append((_height(math.nan), "NaN"))
    bottom = _height(0) + 14
    height = bottom + _LETTER * max((len(row.name) for row in rows), default=0) + 12
    return Chart(columns, step, max(len(rows), 1) * step, height, bottom, ticks)


def _height(value: float) -> float:
    """Return the height at which a number is drawn: NaN at the top, 0 below all others."""
    if not math.isfinite(value):
        return _TOP / 2
    exponent = min(max(math.log10(value), _LEAST), _MOST) if value > 0 else _LEAST - 1
    return _TOP + (_MOST - exponent) / (_MOST - _LEAST + 1) * _PLOT
