"""The values that every path from an operation to the outputs passes."""

from obscura_jax.parity.align import Side

_NEAR = 12


def gates(side: Side, index: int, limit: int = _NEAR) -> list[int]:
    """Return the nearest such values without a match on the other side, the node itself first."""
    after = {index}
    consumers = side.trace.consumers()
    for i in sorted(side.live):
        if i > index and any(j in after for j in side.node(i).inputs):
            after.add(i)
    outputs = set(side.trace.outputs) & after
    passed: dict[int, set[int]] = {}
    for i in sorted(after, reverse=True):
        following = [passed[j] for j in consumers.get(i, ()) if j in passed]
        common = set.intersection(*following) if following and i not in outputs else set()
        passed[i] = {i} | common
    return [i for i in sorted(passed[index]) if _usable(side, i)][:limit]


def _usable(side: Side, index: int) -> bool:
    node = side.node(index)
    if index in side.trace.outputs:
        return True
    return (
        node.is_float
        and node.print is not None
        and node.print.telling
        and index not in side.matched
    )
