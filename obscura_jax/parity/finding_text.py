"""Describe findings in lines of text: the first in full, further ones in short."""

import textwrap
from collections.abc import Iterator, Sequence

from obscura_jax.parity.findings import Finding, Place
from obscura_jax.parity.wording import (
    effect_of,
    grouped,
    heading,
    mend_of,
    operation_of,
    places_of,
    reason_of,
    some,
    where,
)

COLUMNS = 100
_OPERANDS = 3
_TWO_LINES = 4  # findings after this one have one line each


def finding_lines(
    title: str, findings: Sequence[Finding], most: int, *, full: int
) -> Iterator[str]:
    """Yield a title and some findings, those at the same lines as one.

    Args:
        title: the title.
        findings: the findings.
        most: how many to show.
        full: with at most this number, all are described in full; with more, only the first one,
            unless it is 0.
    """
    groups = grouped(findings)
    if groups:
        yield f"{title} (PyTorch, then JAX): {len(groups)}"
    for n, finding in enumerate(groups[:most]):
        in_full = n == 0 < full or len(groups) <= full
        yield from _full(n + 1, finding) if in_full else _short(n + 1, finding)
    if len(groups) > most:
        yield f"  and {len(groups) - most} more"


def _full(n: int, finding: Finding) -> Iterator[str]:
    """Yield everything that is known about a finding."""
    effect = effect_of(finding)
    yield f"  {n}. {heading(finding)}" + (f"; effect {effect}" if effect else "")
    for side, place in (("PyTorch", finding.torch), ("JAX", finding.jax)):
        if place is not None:
            yield from _place(side, place)
    operands = (
        ("both use", finding.shared),
        ("only PyTorch uses", finding.torch_only),
        ("only JAX uses", finding.jax_only),
    )
    words = "; ".join(f"{who} {some(names, _OPERANDS)}" for who, names in operands if names)
    for name, text in (
        ("operands", words),
        ("relation", finding.relation),
        ("mend", mend_of(finding)),
    ):
        if text:
            yield from wrapped(f"     {name:<10}{text}", " " * 15)


def _place(side: str, place: Place) -> Iterator[str]:
    """Yield the line of code, if it is known, and the operation."""
    if place.source is not None:
        yield fitted(f"     {side:<10}{where(place)}  {place.code}".rstrip(), COLUMNS)
        side = ""
    yield fitted(f"     {side:<10}{operation_of(place)}", COLUMNS)


def _short(n: int, finding: Finding) -> Iterator[str]:
    """Yield the lines of a finding with its mend or cause, in one or two lines."""
    places = places_of(finding)
    if finding.torch and finding.jax:
        places = f"{where(finding.torch)}, {where(finding.jax)}"
    times = f", in {finding.occurrences} places" if finding.occurrences > 1 else ""
    reason = reason_of(finding).removesuffix(" makes both equal here")
    words = f"  {n}. {places}{times}: {'mend ' if finding.mend else ''}{reason}"
    yield from wrapped(words, "     ", 2 if n <= _TWO_LINES else 1)


def wrapped(words: str, indent: str, most: int = 3) -> list[str]:
    """Break text into at most `most` lines, and cut the rest; all but the first are indented."""
    lines = textwrap.wrap(words, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)
    if len(lines) > most:
        last = " ".join([lines[most - 1], *(line.strip() for line in lines[most:])])
        lines[most - 1 :] = [fitted(last, COLUMNS)]
    return lines


def fitted(words: str, columns: int) -> str:
    """Cut text that is too long."""
    return words if len(words) <= columns else words[: columns - 3] + "..."
