"""Format the lab's report as a short table and as JSON; `page` formats it as HTML."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

from obscura_jax.parity.finding_text import finding_lines
from obscura_jax.parity.gpt.compare import Finding
from obscura_jax.parity.gpt.verdict import FORWARD, Report
from obscura_jax.parity.json_report import dumped, versions

_PLACES = 5  # most places to show
SCHEMA = "obscura_jax.parity/1"
EQUAL = "equal up to rounding"


def verdict(report: Report) -> str:
    """Return the verdict in one line; if different: the first place, the size and the cause."""
    if report.equal:
        return EQUAL
    if (found := report.first) is None:
        tokens = next(row for row in report.tokens if not row.equal)
        return (
            f"differs, first at token {tokens.differs_at} of {tokens.prompt!r}: ours "
            f"{tokens.ours}, theirs {tokens.theirs}, margin {tokens.margin:.1e}"
        )
    section, row = found
    where = row.name if section.title == FORWARD else f"{row.name} ({section.title})"
    size = row.note if math.isnan(row.float64) else f"by {row.float64:.1e} in float64"
    return f"differs, first at {where}, {size}: {section.cause or 'the cause is unknown'}"


def as_text(report: Report) -> str:
    """Return a table with one row per kind of component, over all blocks, and the verdict."""
    lines = [
        f"{report.source} in JAX, compared with {report.against}",
        f"{'':<34}{'float32':>9}{'float64':>9}{'rounding':>10}",
    ]
    equal_so_far = True  # consequences of an earlier difference are not listed
    for section in report.sections:
        rows = section.findings
        if section.title != FORWARD:
            lines.append(_line(section.title, rows))
            rows = [row for row in rows if equal_so_far and not row.equal]
        lines += [_line(name, of) for name, of in _kinds(rows)]
        equal_so_far = equal_so_far and section.first is None
    for tokens in report.tokens:
        result = "equal"
        if tokens.differs_at is not None:
            kind = "a near-tie" if tokens.near_tie else "not a near-tie"
            result = (
                f"differ at token {tokens.differs_at}: ours {tokens.ours}, theirs {tokens.theirs}; "
                f"margin {tokens.margin:.1e}, {kind}"
            )
        lines.append(f"tokens after {tokens.prompt!r}: {result}")
    for section in report.sections:
        title = "places where they part"
        lines += finding_lines(title, section.places, _PLACES, full=1)
    noted = [f"{r.name}: {r.note}" for s in report.sections for r in s.findings if r.note]
    lines += [f"note: {note}" for note in [*report.notes, *noted[:5]]]
    lines.append(f"verdict: {verdict(report)}")
    return "\n".join(lines)


def as_json(report: Report) -> str:
    """Return the report as JSON with schema `SCHEMA`; numbers that are not finite are null.

    Keys: schema, verdict ("equal up to rounding" or "differs"), sentence, source, against, config,
    versions, notes, first (section, tensor, prompt, float64, cause; or null), sections (title,
    cause, places, tensors: name, prompt, float32, float64, expected64, equal, note), tokens
    (prompt, count, differs_at, ours, theirs, margin, rounding, near_tie, equal). Places are the
    findings of `obscura_jax.parity.report.as_json`; "torch" is the user's line, "jax" ours.
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
        "versions": versions(),
        "notes": report.notes,
        "first": first,
        "sections": [
            {
                "title": s.title,
                "cause": s.cause,
                "places": [asdict(place) for place in s.places],
                "tensors": [vars(row) for row in s.findings],
            }
            for s in report.sections
        ],
        "tokens": [vars(t) | {"near_tie": t.near_tie, "equal": t.equal} for t in report.tokens],
    }
    return dumped(content)


def _line(name: str, rows: Sequence[Finding]) -> str:
    """Return a line of the table: the numbers of the worst finding."""
    row = max(rows, key=lambda r: (not r.equal, r.excess))
    count = f" x{len(rows)}" if len(rows) > 1 else ""
    first = next((r for r in rows if not r.equal), None)
    result = "equal" if first is None else f"DIFFERS, first at {first.name}"
    numbers = f"{row.float32:>9.1e}{row.float64:>9.1e}{row.expected64:>10.1e}"
    return f"{name + count:<34}{numbers}  {result}"


def _kinds(rows: Iterable[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Yield each kind of component with its findings in all blocks, in order."""
    kinds: dict[str, list[Finding]] = {}
    for row in rows:
        name = re.sub(r"trf_blocks\.\d+$", "trf_blocks.*", row.name)
        kinds.setdefault(re.sub(r"trf_blocks\.\d+\.", "", name), []).append(row)
    yield from kinds.items()
