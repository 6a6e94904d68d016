"""Word a place at which two programs part for the author of the PyTorch program."""

import re
from collections.abc import Iterable

from obscura_jax.parity.findings import Finding, Place
from obscura_jax.parity.wording import reason_of, some, where


def sentence(finding: Finding) -> str:
    """Return the lines of both sides, PyTorch's first, and what PyTorch does differently.

    A mend is a change of our model. Our model is the reference, so "A for B" means that PyTorch
    computes as if it had A instead of B.
    """
    sides = ((finding.torch, "PyTorch's"), (finding.jax, "our"))
    places = " and ".join(f"{whose} {operation(place)}" for place, whose in sides if place)
    times = f" in {finding.occurrences} places" if finding.occurrences > 1 else ""
    verb = "differ" if finding.torch and finding.jax else "differs"
    reason = _reason(finding)
    return f"{places} {verb}{times}" + (f"; {reason}" if reason else "")


def constants_note(findings: Iterable[Finding]) -> str:
    """Return a note on constants that PyTorch rounds to float32."""
    places = (finding.torch for finding in findings)
    lines = dict.fromkeys(where(place) for place in places if place)
    return (
        f"PyTorch rounds constants to float32, at {some(lines, 2, 'line')}; differences that "
        "these explain are not mistakes"
    )


def operation(place: Place) -> str:
    """Return an operation with its line, such as "gelu at mine.py:31"."""
    line = f" at {place.source}" if place.source else ""
    return f"{place.fused or place.op}{line}"


def _reason(finding: Finding) -> str:
    mend = finding.mend
    if mend is None:
        known = finding.relation or finding.torch_only or finding.jax_only
        return reason_of(finding).replace("JAX's", "ours").replace("JAX", "ours") if known else ""
    literal = re.fullmatch("(.+) for (.+)", mend.words) if mend.kind == "literal" else None
    if literal:
        return f"PyTorch's values are ours with {literal[1]} instead of {literal[2]}"
    here = finding.jax.source if finding.jax else None
    line = f" at {mend.source}" if mend.source and mend.source != here else ""
    return f"one change{line} makes ours the same: {mend.words}"
