"""Format the comparison of two programs as text for a terminal, and as JSON."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from obscura_jax.parity.finding_text import finding_lines, fitted, wrapped
from obscura_jax.parity.findings import Gradient, Operation, Output, Report, Side
from obscura_jax.parity.json_report import dumped, versions
from obscura_jax.parity.operation_rows import rows_of
from obscura_jax.parity.wording import (
    constants_alone,
    number,
    some,
    verdict_line,
    without_twins,
)

__all__ = ["SCHEMA", "as_json", "as_list", "as_text", "verdict_line"]

SCHEMA = "obscura_jax.parity.programs/1"
_OUTPUTS, _FINDINGS, _BACKWARD, _GRADIENTS, _NAMES, _NOTES = 4, 8, 3, 5, 5, 3  # most to show
_LOWERED = 3  # most lines of lower precision to show
_UNREAD = "parameters that {}'s outputs do not depend on"
_CELL = 47  # columns of an operation


def as_text(report: Report) -> str:
    """Return the report in about 30 lines of at most 100 columns; the last one is the verdict."""
    lines = [
        *(_side(side) for side in report.sides),
        *_outputs(
            report.outputs, "equal but for constants" if constants_alone(report) else "DIFFERS"
        ),
        *finding_lines("places where they part", report.findings, _FINDINGS, full=2),
        *_gradients(report.gradients),
        *finding_lines("places where gradients part", report.gradient_findings, _BACKWARD, full=0),
        *_parameters(report.sides),
    ]
    notes = list(report.notes)
    if not report.complete:
        notes.insert(0, "more differences may follow the last one listed")
    for note in notes[:_NOTES]:
        lines += wrapped(f"note: {note}", "  ", 2)
    if len(notes) > _NOTES:
        lines.append(f"  and {len(notes) - _NOTES} more notes")
    return _printable([*lines, f"verdict: {verdict_line(report)}"])


def as_list(report: Report) -> str:
    """Return a table of all operations of both sides, each next to its match."""
    lines = [f"{'PyTorch':<{_CELL}}     JAX"]
    for row in rows_of(report.operations):
        torch, jax = _cell(row.torch, row.jax), _cell(row.jax, row.torch)
        lines.append(f"{torch:<{_CELL}}  {'=' if row.equal else ' '}  {jax}".rstrip())
    return _printable(lines)


def as_json(report: Report) -> str:
    """Return the report as JSON with schema `SCHEMA`; numbers that are not finite are null.

    Keys:
        schema, verdict ("equal", "equal, with float32 constants", "differs" or "not comparable"),
            equal, exit_code, sentence, reason, versions, tolerance, complete, notes
        sides: name, program, operations, matched, unmatched_parameters, unread_parameters, lowered
        outputs: name, shape, float64, native, equal
        findings, gradient_findings: kind, torch and jax (op, fused, source, code, path, shape; or
            null), shared, torch_only, jax_only, relation, effect, occurrences, mend (kind, source,
            words; or null)
        gradients: name, jax_name, apart, equal
        operations: side, index, place (as torch and jax above), match (an index or null)

    A source is null, or file, line and function.
    """
    content = asdict(report, dict_factory=_without_text)
    first = {
        "schema": SCHEMA,
        "verdict": report.verdict.value,
        "equal": report.equal,
        "exit_code": report.exit_code,
        "sentence": verdict_line(report),
        "versions": versions(),
    }
    return dumped(first | content)


def _without_text(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a part of the report; a source's text is its place's code already."""
    return {name: value for name, value in fields if name != "text"}


def _side(side: Side) -> str:
    count = f"{side.operations} operations, {side.matched} matched"
    return f"{side.name:<8} {fitted(side.program, 60)}: {count}"


def _outputs(outputs: Sequence[Output], different: str) -> Iterator[str]:
    """Yield a table of the outputs; those that are not equal are first, marked `different`."""
    if outputs:
        yield f"{'output':<32} {'shape':<22} {'float64':>9} {'native':>9}"
    for row in sorted(outputs, key=lambda row: row.equal)[:_OUTPUTS]:
        result = "equal" if row.equal else different
        numbers = f"{number(row.float64):>9} {number(row.native):>9}"
        yield f"{fitted(row.name or 'output', 32):<32} {row.shape!s:<22} {numbers}  {result}"
    if len(outputs) > _OUTPUTS:
        count = sum(not row.equal for row in outputs)
        which = f"{count} of all {len(outputs)} differ" if count else "all are equal"
        yield f"  and {len(outputs) - _OUTPUTS} more; {which}"


def _gradients(gradients: Sequence[Gradient]) -> Iterator[str]:
    """Yield the gradients that differ."""
    different = [gradient for gradient in gradients if not gradient.equal]
    if not different:
        yield from [f"gradients: {len(gradients)} of {len(gradients)} equal"] if gradients else []
        return
    names = [f"{fitted(g.name or g.jax_name, 60)} by {number(g.apart)}" for g in different]
    words = f"gradients: {len(different)} of {len(gradients)} differ: {some(names, _GRADIENTS)}"
    yield from wrapped(words, "  ")


def _parameters(sides: Iterable[Side]) -> Iterator[str]:
    """Yield the parameters that only one side reads, and the lines of lower precision."""
    for side in sides:
        for words, names, most, columns in (
            (without_twins(side), side.unmatched_parameters, _NAMES, 40),
            (_UNREAD.format(side.name), side.unread_parameters, _NAMES, 40),
            (f"{side.name} rounds to lower precision at", side.lowered, _LOWERED, 80),
        ):
            if names:
                short = [fitted(name, columns) for name in names]
                yield from wrapped(f"{words}: {some(short, most)}", "  ")


def _cell(operation: Operation | None, other: Operation | None) -> str:
    """Return an operation in at most `_CELL` columns, or the position of the value of `other`."""
    if operation is None:
        known = other is not None and other.match is not None
        return f"{other.match:>5} is not in the list" if other and known else ""
    place = operation.place
    line = fitted(str(place.source or ""), 24)
    room = _CELL - 7 - len(line)
    shape = ",".join(map(str, place.shape))
    return f"{operation.index:>5} {fitted(f'{place.op}({shape})', room):<{room}} {line}"


def _printable(lines: Iterable[str]) -> str:
    """Join lines; characters that could control a terminal become spaces."""
    shown = ("".join(c if c.isprintable() else " " for c in line) for line in lines)
    return "\n".join(shown)
