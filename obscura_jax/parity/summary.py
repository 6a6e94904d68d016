"""Summarize one side of a comparison: its operations, parameters and lines of lower precision."""

from obscura_jax.parity import explain
from obscura_jax.parity.align import Side
from obscura_jax.parity.findings import Operation
from obscura_jax.parity.findings import Side as Summary
from obscura_jax.parity.precision import Program, lowered_lines


def side_of(side: Side, other: Side, name: str, program: Program | None = None) -> Summary:
    """Return the summary of a side.

    Args:
        side: the side.
        other: the other side.
        name: the name of its callable.
        program: the program itself, with which the cost of lower precision is measured.
    """
    trace = side.trace
    operations = [i for i in side.live if not side.node(i).leaf]
    parameters = set(trace.parameters)
    unmatched = [i for i in explain.unmatched_leaves(side, other) if i in parameters]
    unread = [i for i in trace.parameters if i not in side.live]
    return Summary(
        trace.side,
        name,
        len(operations),
        sum(i in side.matched or i in side.settled for i in operations),
        _names(side, unmatched),
        _names(side, unread),
        lowered_lines(side, program),
    )


def _names(side: Side, indices: list[int]) -> tuple[str, ...]:
    names = (side.node(i).name for i in sorted(indices))
    return tuple(dict.fromkeys(name for name in names if name not in ("constant", "literal")))


def operations_of(side: Side, other: Side) -> tuple[Operation, ...]:
    """Return every operation that the outputs depend on, with its match on the other side."""
    twins = {
        known: computed[0]
        for known, nodes in other.by_class.items()
        if (computed := [i for i in nodes if not other.node(i).leaf])
    }
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
