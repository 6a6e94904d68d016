"""Summarize one side of a comparison: its operations, parameters and lines of lower precision."""

from obscura_jax.parity import explain
from obscura_jax.parity.align import Side
from obscura_jax.parity.findings import Operation
from obscura_jax.parity.findings import Side as Summary


def side_of(side: Side, other: Side, program: str) -> Summary:
    """Return the summary of a side.

    Args:
        side: the side.
        other: the other side.
        program: the name of its callable.
    """
    trace = side.trace
    operations = [i for i in side.live if not side.node(i).leaf]
    parameters = set(trace.parameters)
    unmatched = [i for i in explain.unmatched_leaves(side, other) if i in parameters]
    unread = [i for i in trace.parameters if i not in side.live]
    return Summary(
        trace.side,
        program,
        len(operations),
        sum(i in side.matched or i in side.settled for i in operations),
        _names(side, unmatched),
        _names(side, unread),
        _lowered(side),
    )


def _names(side: Side, indices: list[int]) -> tuple[str, ...]:
    names = (side.node(i).name for i in sorted(indices))
    return tuple(dict.fromkeys(name for name in names if name not in ("constant", "literal")))


def _lowered(side: Side) -> tuple[str, ...]:
    """Return the lines that round to a lower precision, with the type."""
    found: dict[str, int] = {}
    for i in sorted(side.live):
        node = side.node(i)
        if node.lowered:
            words = f"{node.lowered} at {node.source or node.op}"
            found[words] = found.get(words, 0) + 1
    return tuple(f"{words} ({n} times)" if n > 1 else words for words, n in found.items())


def operations_of(side: Side, other: Side) -> tuple[Operation, ...]:
    """Return every operation that the outputs depend on, with its match on the other side."""
    twins: dict[int, int] = {}
    for i in sorted(other.live):
        if i in other.classes and not other.node(i).leaf:
            twins.setdefault(other.classes[i], i)
    return tuple(
        Operation(
            side.trace.side,
            i,
            explain.place_of(side.node(i)),
            twins.get(side.classes[i]) if i in side.classes else None,
        )
        for i in sorted(side.live)
        if not side.node(i).leaf
    )
