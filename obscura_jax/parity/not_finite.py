"""NaN and infinite outputs: which side has them, and the operation at which they first appear."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from obscura_jax.parity import explain
from obscura_jax.parity.findings import Finding
from obscura_jax.parity.fingerprint import Fingerprint
from obscura_jax.parity.trace import Node, Trace

_KINDS: dict[str, Callable[[Fingerprint], int]] = {
    "NaN": lambda print_: print_.nan,
    "infinite values": lambda print_: print_.infinite,
}


@dataclass(frozen=True)
class NotFinite:
    """The NaN and infinite outputs of two programs, in words.

    Attributes:
        notes: remarks, one sentence each.
        finding: the first operation that makes them, if only one side has them; else None.
    """

    notes: tuple[str, ...] = ()
    finding: Finding | None = None

    def added_to(self, findings: Iterable[Finding]) -> tuple[Finding, ...]:
        """Return findings, with this one if they explain no difference yet."""
        known = tuple(findings)
        explained = any(finding.kind != "constant" for finding in known)
        return known if explained or self.finding is None else (*known, self.finding)


def not_finite(torch: Trace, jax: Trace) -> NotFinite:
    """Return which outputs are NaN or infinite on one side, or on both.

    Call this before the JAX program is changed, because a change replaces its fingerprints.
    """
    notes, finding = [], None
    for kind in _KINDS:
        both = [(trace, node) for trace in (torch, jax) if (node := first_of(trace, kind))]
        if len(both) == 2:
            notes.append(
                f"the outputs of both sides contain {kind}, which count as equal where both have "
                f"them; they first appear {_where(both[0][1])} in PyTorch and "
                f"{_where(both[1][1])} in JAX"
            )
        elif both and finding is None:
            ((trace, node),) = both
            note = f"only {trace.side}'s outputs contain {kind}, which first appear {_where(node)}"
            place = explain.place_of(node)
            theirs, ours = (place, None) if trace is torch else (None, place)
            finding = Finding("operation", theirs, ours, relation=note)
            notes.append(note)
    if not notes:
        notes = _in_their_own_precision(torch, jax)
    return NotFinite(tuple(notes), finding)


def first_of(trace: Trace, kind: str) -> Node | None:
    """Return the operation that makes the first NaN of those in the outputs, or None.

    Args:
        trace: the program.
        kind: "NaN" or "infinite values".
    """
    found: set[int] = set()
    stack = [i for i in trace.outputs if _has(trace.nodes[i], kind)]
    while stack:
        i = stack.pop()
        if i not in found:
            found.add(i)
            stack += [j for j in trace.nodes[i].inputs if _has(trace.nodes[j], kind)]
    nodes = (trace.nodes[i] for i in sorted(found))
    return next((node for node in nodes if not _anonymous(node)), None)


def _has(node: Node, kind: str) -> bool:
    return node.print is not None and _KINDS[kind](node.print) > 0


def _anonymous(node: Node) -> bool:
    """Return True for a constant, whose line is that of the operation that uses it."""
    return node.leaf and node.name in ("constant", "literal", "input", "")


def _where(node: Node) -> str:
    if node.leaf:
        return f"in {node.name}"
    return f"at {node.source} ({node.op})" if node.source else f"in {node.op}"


def _in_their_own_precision(torch: Trace, jax: Trace) -> list[str]:
    """Return a note if outputs that are finite in float64 overflow on one side alone."""
    for n, (theirs, ours) in enumerate(zip(torch.native, jax.native, strict=True)):
        finite = [bool(np.isfinite(x).all()) for x in (theirs, ours)]
        if finite[0] != finite[1]:
            side, label = ("JAX", jax) if finite[0] else ("PyTorch", torch)
            name = f"output {label.labels[n]}" if label.labels[n] else "the output"
            return [f"{name} is finite in float64, but not in {side}'s own precision"]
    return []
