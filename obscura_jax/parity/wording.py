"""The words for a comparison's results, which the text and the page share."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from obscura_jax.parity.findings import Finding, Place, Report, Side, Verdict

_KINDS = {
    "operation": "the operations differ",
    "constant": "a constant is rounded to float32",
    "arrangement": "the entries are arranged differently",
}


def verdict_line(report: Report) -> str:
    """Return the verdict in one line; if different: the first place, with its mend or cause."""
    words: str = report.verdict.value
    if report.verdict is Verdict.EQUAL_WITH_CONSTANTS:
        lines = dict.fromkeys(filter(None, map(_line_of, report.findings)))
        words += f" at {some(lines, 1, 'line')}" if lines else ""
    elif report.verdict is Verdict.NOT_COMPARABLE:
        words += f": {report.reason}" if report.reason else ""
    elif report.verdict is Verdict.DIFFERS:
        words += _first_difference(report)
    return " ".join(words.split())


def _line_of(finding: Finding) -> str:
    """Return the line of a finding, in JAX if it is known."""
    places = (finding.jax, finding.torch)
    return next((str(place.source) for place in places if place and place.source), "")


def _first_difference(report: Report) -> str:
    """Return the first difference as the end of a sentence that starts with "differs"."""
    forward = [f for f in report.findings if f.kind != "constant"]
    for findings, how in ((forward, "first"), (report.gradient_findings, "first in the gradients")):
        if findings:
            first = findings[0]
            return f", {how} at {places_of(first)}: {reason_of(first)}"
    outputs = [output for output in report.outputs if not output.equal]
    if outputs:
        names = some([output.name or "the output" for output in outputs], 1, "output")
        return f" in {names}, by {number(outputs[0].float64)} in float64; no line was found"
    gradients = [gradient.name for gradient in report.gradients if not gradient.equal]
    if gradients:
        return f" in the gradient of {some(gradients, 1, 'parameter')}; no line was found"
    return "; no line was found"


def places_of(finding: Finding) -> str:
    """Return both lines of a finding, such as "model.py:40 (PyTorch) and port.py:31 (JAX)"."""
    sides = ((finding.torch, "PyTorch"), (finding.jax, "JAX"))
    return " and ".join(f"{where(p)} ({side})" for p, side in sides if p) or "an unknown line"


def where(place: Place) -> str:
    """Return the line of an operation, or its name if the line is not known."""
    if place.source:
        return str(place.source)
    return f"{place.op} in {place.path}" if place.path else place.op


def operation_of(place: Place) -> str:
    """Return the operation, such as "mul, part of gelu", with its shape and its path."""
    path = f", in {place.path}" if place.path else ""
    return f"{_name_of(place)}, shape {place.shape}{path}"


def _name_of(place: Place) -> str:
    fused = f", part of {place.fused}" if place.fused and place.fused != place.op else ""
    return f"{place.op}{fused}"


def heading(finding: Finding) -> str:
    """Return what differs, and in how many places."""
    kind = _KINDS.get(finding.kind, finding.kind)
    return f"{kind}, in {finding.occurrences} places" if finding.occurrences > 1 else kind


def mend_of(finding: Finding) -> str:
    """Return the mend, with its line if it is not the finding's line in JAX."""
    mend = finding.mend
    if mend is None:
        return ""
    line, here = mend.source, finding.jax.source if finding.jax else None
    if line and here and (line.file, line.line) == (here.file, here.line):
        mend = replace(mend, source=None)
    return str(mend)


def reason_of(finding: Finding) -> str:
    """Return the mend, or how the results relate, the operands of one side alone, or both names."""
    operands = "; ".join(
        f"only {side} uses {some(names, 3)}"
        for side, names in (("PyTorch", finding.torch_only), ("JAX", finding.jax_only))
        if names
    )
    return mend_of(finding) or finding.relation or operands or _both_names(finding)


def _both_names(finding: Finding) -> str:
    """Return what differs, with the operation of each side, such as "erf, part of gelu"."""
    kind = heading(replace(finding, occurrences=1))
    sides = (("PyTorch", finding.torch), ("JAX", finding.jax))
    names = [f"{_name_of(place)} in {side}" for side, place in sides if place]
    return f"{kind}: {' and '.join(names)}" if names else kind


def constants_alone(report: Report) -> bool:
    """Return True if constants that one side rounds to float32 explain every differing output."""
    found = {finding.kind for finding in report.findings}
    return found == {"constant"} and report.complete


def effect_of(finding: Finding) -> str:
    """Return by how much a finding changes the output, or "" if that is not known."""
    return f"{number(finding.effect)} of the output's root mean square" if finding.effect else ""


def without_twins(side: Side) -> str:
    """Return the heading of the parameters of a side that the other side does not have."""
    other = "JAX" if side.name == "PyTorch" else "PyTorch"
    return f"parameters of {side.name} whose values {other} does not use"


def grouped(findings: Iterable[Finding]) -> list[Finding]:
    """Return the findings in order, constants last; those at the same lines become one."""
    groups: dict[object, Finding] = {}
    for finding in findings:
        places = tuple(
            place and ((place.source.file, place.source.line) if place.source else place)
            for place in (finding.torch, finding.jax)
        )
        key = (finding.kind, places, finding.mend and finding.mend.words)
        first = groups.get(key)
        if first is not None:
            count = first.occurrences + finding.occurrences
            effect = max(first.effect, finding.effect)
            finding = replace(first, occurrences=count, effect=effect)
        groups[key] = finding
    return sorted(groups.values(), key=lambda finding: finding.kind == "constant")


def some(names: Iterable[str], most: int, noun: str = "") -> str:
    """Return the first names, such as "a, b and 3 more", or with a noun "a and 3 more lines"."""
    shown: Sequence[str] = list(names)
    more = len(shown) - most
    if more <= 0:
        return ", ".join(shown)
    nouns = f" {noun}{'s' if more > 1 else ''}" if noun else ""
    return f"{', '.join(shown[:most])} and {more} more{nouns}"


def number(value: float) -> str:
    """Return a difference with two digits."""
    if math.isnan(value):
        return "NaN"
    return f"{value:.1e}" if value else "0"
