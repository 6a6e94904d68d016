"""Find the node of another layer that corresponds to a node: the same line, once more."""

from obscura_jax.parity.trace import Node, Trace

_MOST = 400  # nodes that are mapped


def same_line(trace: Trace, index: int) -> list[int]:
    """Return the nodes of one operation and line in all layers, in order."""
    if not trace.lines:
        trace.lines = _lines(trace)
    return trace.lines[index]


def _lines(trace: Trace) -> list[list[int]]:
    """Return for each node those of its line that are computed alike, with itself."""
    numbers: dict[object, int] = {}
    keys: list[int] = []
    groups: dict[int, list[int]] = {}
    for node in trace.nodes:
        operands = tuple(
            keys[i] if _together(node, trace.nodes[i]) else trace.nodes[i].op for i in node.inputs
        )
        key = (node.op, node.source, node.fused, operands)
        keys.append(numbers.setdefault(key, len(numbers)))
        groups.setdefault(keys[-1], []).append(node.index)
    return [groups[key] for key in keys]


def _together(node: Node, operand: Node) -> bool:
    return not operand.leaf and operand.source is not None and operand.source == node.source


def parallel(trace: Trace, here: int, there: int) -> "Parallel":
    """Return the map from the operands of a node to those of the same line elsewhere."""
    key = (here, there)
    if key not in trace.parallels:
        trace.parallels[key] = Parallel(trace, here, there)
    found: Parallel = trace.parallels[key]
    return found


class Parallel:
    """Maps the operands of a node, and nodes near it, to those of the same line elsewhere.

    Args:
        trace: the trace.
        here: a node.
        there: the node of the same line elsewhere, such as in another layer.
    """

    def __init__(self, trace: Trace, here: int, there: int) -> None:
        self._trace = trace
        self._known = {here: there}
        lines = same_line(trace, here)
        self._count, self._step = len(lines), lines.index(there) - lines.index(here)
        self._grow(here)

    def _grow(self, start: int) -> None:
        nodes, stack = self._trace.nodes, [start]
        while stack:
            a = stack.pop()
            b = self._known[a]
            for i, j in zip(nodes[a].inputs, nodes[b].inputs, strict=False):
                if i not in self._known:
                    self._known[i] = j
                    if nodes[i].op == nodes[j].op and len(self._known) < _MOST:
                        stack.append(i)

    def __call__(self, index: int) -> int | None:
        """Return the node that corresponds to one, or None."""
        if index not in self._known and not self._trace.nodes[index].leaf:
            found = self._by_line(index)
            if found is not None:
                self._known[index] = found
                self._grow(index)
        return self._known[index] if index in self._known else self._by_use(index)

    def _by_line(self, index: int) -> int | None:
        lines = same_line(self._trace, index)
        at = lines.index(index) + self._step * len(lines) / self._count
        return lines[int(at)] if at == int(at) and 0 <= at < len(lines) else None

    def _by_use(self, index: int) -> int | None:
        """Return the operand of the node that corresponds to one that uses it."""
        for node in self._trace.nodes[index:]:
            if index in node.inputs and (other := self._by_line(node.index)) is not None:
                return self._trace.nodes[other].inputs[node.inputs.index(index)]
        return None
