"""The lab's report as a short table, as JSON and as one HTML page that needs no other file."""

import html
import json
import math
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from obscura_jax.parity.compare import Finding
from obscura_jax.parity.verdict import FORWARD, Report, Section

SCHEMA = "obscura_jax.parity/1"
EQUAL = "equal up to rounding"
_COLOURS = {"float32": "#1f77b4", "float64": "#d62728", "rounding explains": "#888888"}


def verdict(report: Report) -> str:
    """One line: equal up to rounding, or where it first differs, by how much and why."""
    if report.equal:
        return EQUAL
    if (found := report.first) is None:
        parted = next(row for row in report.tokens if not row.equal)
        return (
            f"differs, first at token {parted.differs_at} of {parted.prompt!r}: {parted.ours}, "
            f"theirs {parted.theirs}, margin {parted.margin:.1e}"
        )
    section, row = found
    where = row.name if section.title == FORWARD else f"{row.name} ({section.title})"
    size = row.note if math.isnan(row.float64) else f"by {row.float64:.1e} in float64"
    return f"differs, first at {where}, {size}: {section.cause or 'the cause is not a known one'}"


def as_text(report: Report) -> str:
    """A row for each kind of component, over all blocks, and the verdict."""
    lines = [
        f"{report.source} in JAX beside {report.against}",
        f"{'':<34}{'float32':>9}{'float64':>9}{'rounding':>10}",
    ]
    sound = True  # up to here; what follows from an earlier difference is not listed
    for section in report.sections:
        rows = section.findings
        if section.title != FORWARD:
            lines.append(_line(section.title, rows))
            rows = [row for row in rows if sound and not row.equal]
        lines += [_line(name, of) for name, of in _kinds(rows)]
        sound = sound and section.first is None
    for parted in report.tokens:
        where = "the same" if parted.differs_at is None else f"part at token {parted.differs_at}"
        if parted.differs_at is not None:
            kind = "a near-tie" if parted.near_tie else "no near-tie"
            where += f": {parted.ours}, theirs {parted.theirs}; margin {parted.margin:.1e}, {kind}"
        lines.append(f"tokens after {parted.prompt!r}: {where}")
    noted = [f"{r.name}: {r.note}" for s in report.sections for r in s.findings if r.note]
    lines += [f"note: {note}" for note in [*report.notes, *noted[:5]]]
    lines.append(f"verdict: {verdict(report)}")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """The report as JSON of schema `SCHEMA`; numbers that are not finite are null.

    Keys: schema, verdict ("equal up to rounding" or "differs"), sentence, source, against, config,
    versions, notes, first (section, tensor, prompt, float64, cause; or null), sections (title,
    cause, tensors: name, prompt, float32, float64, expected64, equal, note), tokens (prompt, count,
    differs_at, ours, theirs, margin, rounding, near_tie, equal).
    """
    first = None
    if report.first is not None:
        section, row = report.first
        first = {
            "section": section.title,
            "tensor": row.name,
            "prompt": row.prompt,
            "float64": row.float64,
            "cause": section.cause,
        }
    content = {
        "schema": SCHEMA,
        "verdict": EQUAL if report.equal else "differs",
        "sentence": verdict(report),
        "source": report.source,
        "against": report.against,
        "config": report.cfg.to_dict(),
        "versions": _versions(),
        "notes": report.notes,
        "first": first,
        "sections": [
            {"title": s.title, "cause": s.cause, "tensors": [vars(row) for row in s.findings]}
            for s in report.sections
        ],
        "tokens": [vars(t) | {"near_tie": t.near_tie, "equal": t.equal} for t in report.tokens],
    }
    return json.dumps(_finite(content), indent=1) + "\n"


def as_html(report: Report) -> str:
    """One page: the verdict, a plot for each section along the forward pass, all tensors."""
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>obscura parity</title><style>",
        "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}",
        "td,th{padding:.1rem .7rem;text-align:right;font-variant-numeric:tabular-nums}",
        "td:first-child,th:first-child,td:last-child{text-align:left}",
        ".no{background:#fdd}svg{width:100%;height:auto}</style>",
        f"<h1>{html.escape(report.source)} beside {html.escape(report.against)}</h1>",
        f"<p><b>{html.escape(verdict(report))}</b></p>",
        *(f"<p>{html.escape(note)}</p>" for note in report.notes),
    ]
    for section in report.sections:
        parts += [f"<h2>{html.escape(section.title)}</h2>", _plot(section), _table(section)]
    if report.tokens:
        cells = [
            f"<tr class={'yes' if t.equal else 'no'}><td>{html.escape(t.prompt)}<td>{t.count}<td>"
            f"{'' if t.differs_at is None else t.differs_at}<td>{t.margin:.1e}<td>"
            f"{'near-tie' if t.near_tie else 'equal' if t.equal else 'differs'}"
            for t in report.tokens
        ]
        head = "<tr><th>greedy tokens after<th>made<th>part at<th>margin<th>"
        parts.append(f"<h2>tokens</h2><table>{head}{''.join(cells)}</table>")
    return "\n".join(parts) + "</html>\n"


def _line(name: str, rows: Sequence[Finding]) -> str:
    """A line of the table: the worst of several findings."""
    row = max(rows, key=lambda r: (not r.equal, r.excess))
    count = f" x{len(rows)}" if len(rows) > 1 else ""
    first = next((r for r in rows if not r.equal), None)
    said = "equal" if first is None else f"DIFFERS, first at {first.name}"
    numbers = f"{row.float32:>9.1e}{row.float64:>9.1e}{row.expected64:>10.1e}"
    return f"{name + count:<34}{numbers}  {said}"


def _kinds(rows: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """The rows of the same component in all blocks together, in order."""
    kinds: dict[str, list[Finding]] = {}
    for row in rows:
        name = re.sub(r"trf_blocks\.\d+$", "trf_blocks.*", row.name)
        kinds.setdefault(re.sub(r"trf_blocks\.\d+\.", "", name), []).append(row)
    yield from kinds.items()


def _table(section: Section) -> str:
    rows = "".join(
        f"<tr class={'yes' if r.equal else 'no'}><td>{html.escape(r.name)}<td>{r.float32:.1e}<td>"
        f"{r.float64:.1e}<td>{r.expected64:.1e}<td>{html.escape(r.prompt)}<td>"
        f"{'equal' if r.equal else 'differs'} {html.escape(r.note)}"
        for r in section.findings
    )
    head = "<tr><th>tensor<th>float32<th>float64<th>rounding explains<th>worst prompt<th>"
    why = f"<p>{html.escape(section.cause)}</p>" if section.cause else ""
    return f"{why}<details open><summary>all tensors</summary><table>{head}{rows}</table></details>"


def _plot(section: Section) -> str:
    """Differences along the forward pass, on a logarithmic scale from 1e-18 to 1e1, as SVG."""
    width, height, left = 1000, 260, 50

    def y(value: float) -> float:
        exponent = math.log10(value) if value > 0 and math.isfinite(value) else -18
        return height - 20 - (min(max(exponent, -18), 1) + 18) / 19 * (height - 30)

    def x(i: int) -> float:
        return left + (i + 0.5) * (width - left) / max(len(section.findings), 1)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for exponent in range(-18, 2, 3):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{left} {at:.1f}H{width}" stroke="#eee"/>')
        parts.append(f'<text x="2" y="{at + 4:.1f}" font-size="12">1e{exponent}</text>')
    values = {
        "float32": [row.float32 for row in section.findings],
        "float64": [row.float64 for row in section.findings],
        "rounding explains": [row.expected64 for row in section.findings],
    }
    for place, (label, column) in enumerate(values.items()):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(column))
        colour = _COLOURS[label]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        style = f'x="{left + 140 * place}" y="{height - 4}" font-size="13" fill="{colour}"'
        parts.append(f"<text {style}>{label}</text>")
    for i, row in enumerate(section.findings):
        colour = "#2a2" if row.equal else "#d00"
        title = f"<title>{html.escape(row.name)}: {row.float64:.1e}</title>"
        centre = f'cx="{x(i):.1f}" cy="{y(row.float64):.1f}"'
        parts.append(f'<circle {centre} r="3" fill="{colour}">{title}</circle>')
    return "".join(parts) + "</svg>"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("obscura-jax", "jax", "flax", "numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
