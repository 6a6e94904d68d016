"""Match the values of two traces, and find where each program parts from the other.

Values are matched by what they are, not by name: two nodes belong to the same class if their
entries are equal in some order. From the outputs that differ, unmatched values are followed back
to the first operations all of whose operands are matched: there the programs part.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from obscura_jax.parity.fingerprint import LEAST, Fingerprint, Fingerprints, close
from obscura_jax.parity.trace import Node, Trace


@dataclass
class Side:
    """One trace with the classes of its values.

    Attributes:
        trace: the trace.
        live: nodes that the outputs depend on.
        classes: class of each telling value, and of what only moves it.
        matched: values that the other side has too.
        weak: matched values that prove nothing, such as constants.
        settled: matched values, leaves, and what only moves them.
        benign: values without a match from which a matched value is computed.
    """

    trace: Trace
    live: set[int]
    classes: dict[int, int] = field(default_factory=dict)
    matched: set[int] = field(default_factory=set)
    weak: set[int] = field(default_factory=set)
    settled: set[int] = field(default_factory=set)
    benign: set[int] = field(default_factory=set)

    def node(self, index: int) -> Node:
        """Return a node."""
        return self.trace.nodes[index]

    @cached_property
    def by_class(self) -> dict[int, list[int]]:
        """The nodes of each class that the outputs depend on, in order; known after `align`."""
        found: dict[int, list[int]] = {}
        for i in sorted(self.live & self.classes.keys()):
            found.setdefault(self.classes[i], []).append(i)
        return found

    def operands(self, index: int) -> list[int]:
        """Return the operands of a node, without the layout operations before them."""
        return [self.origin(i) for i in self.node(index).inputs]

    def origin(self, index: int) -> int:
        """Return the value that layout operations made this one from."""
        node = self.node(index)
        while node.layout and node.inputs:
            node = self.node(node.inputs[0])
        return node.index

    def unmoved(self, index: int) -> int:
        """Return the value of which another one is a mere rearrangement."""
        node = self.node(index)
        while node.permutes and node.inputs:
            node = self.node(node.inputs[0])
        return node.index

    def is_strong(self, index: int) -> bool:
        """Return True if the value is a float array that belongs to a class."""
        node = self.node(index)
        return index in self.classes and node.is_float and node.size >= LEAST

    def is_soft(self, index: int) -> bool:
        """Return True for integers, booleans and values that tell nothing."""
        node = self.node(index)
        return not node.is_float or node.size < LEAST or node.print is None

    def operand_classes(self, index: int) -> set[int]:
        """Return the classes of a node's operands."""
        found = {*self.operands(index), *self.node(index).inputs}
        return {self.classes[i] for i in found if self.is_strong(i)}


@dataclass
class Alignment:
    """Two traces whose values have been matched.

    Attributes:
        torch: the PyTorch side.
        jax: the JAX side.
        tolerance: relative tolerance of a match.
    """

    torch: Side
    jax: Side
    tolerance: float


def align(torch: Trace, jax: Trace, tolerance: float) -> Alignment:
    """Match the values of two traces."""
    sides = tuple(Side(trace, trace.ancestors(trace.outputs)) for trace in (torch, jax))
    classes = _Classes(tolerance)
    for n, side in enumerate(sides):
        for node in side.trace.nodes:
            if node.print is not None and node.print.telling:
                side.classes[node.index] = classes.of(node.print, n)
    for n, side in enumerate(sides):
        side.matched = {i for i, c in side.classes.items() if classes.shared(c)}
        others = [
            p
            for node in sides[1 - n].trace.nodes
            if (p := node.print) is not None and not p.telling
        ]
        side.weak = _weak(side, others, tolerance)
        side.matched |= side.weak
    for side in sides:
        _settle(side)
    return Alignment(sides[0], sides[1], tolerance)


class _Classes:
    """Classes of equal values."""

    def __init__(self, tolerance: float) -> None:
        self._prints = Fingerprints(tolerance)
        self._sides: list[set[int]] = []

    def of(self, print_: Fingerprint, side: int) -> int:
        """Return the class of a value, a new one if none fits."""
        known = self._prints.find(print_)
        if known is None:
            known = self._prints.add(print_)
            self._sides.append(set())
        self._sides[known].add(side)
        return known

    def shared(self, index: int) -> bool:
        """Return True if both sides have values of the class."""
        return len(self._sides[index]) == 2


def _weak(side: Side, others: Iterable[Fingerprint], tolerance: float) -> set[int]:
    """Return the values that tell nothing and that the other side has too."""
    by_kind: dict[str, list[Fingerprint]] = {}
    seen: set[tuple[str, int, float, float]] = set()
    for other in others:
        key = (other.kind, other.count if other.kind == "numbers" else 0, other.value, other.rms)
        if key not in seen:
            seen.add(key)
            by_kind.setdefault(other.kind, []).append(other)
    found = set()
    for i, node in enumerate(side.trace.nodes):
        print_ = node.print
        if print_ is None or print_.telling:
            continue
        if any(close(print_, other, tolerance) for other in by_kind.get(print_.kind, ())):
            found.add(i)
    return found


def _settle(side: Side) -> None:
    """Find the settled and the benign values of a side."""
    side.settled = set(side.matched)
    for i, node in enumerate(side.trace.nodes):
        if node.leaf:
            side.settled.add(i)
        elif node.layout and node.inputs and all(j in side.settled for j in node.inputs):
            side.settled.add(i)
            if i not in side.classes:
                classes = {side.classes[j] for j in node.inputs if j in side.classes}
                if len(classes) == 1:
                    side.classes[i] = next(iter(classes))
    # Integers may be equal although they are computed from values that are not.
    strong = {i for i in side.matched - side.weak if not side.node(i).leaf and side.is_strong(i)}
    consumers = side.trace.consumers()
    for i in sorted(side.live, reverse=True):
        if i not in side.settled and any(
            j in strong or j in side.benign for j in consumers.get(i, ())
        ):
            side.benign.add(i)


def entries(side: Side, outputs: Iterable[int]) -> list[int]:
    """Return the first operations with an unmatched result on the way to the outputs.

    All their operands are matched. An integer, boolean or tiny operand does not count, so that a
    wrong mask or index is found at the operation that uses it.
    """
    done = side.settled | side.benign
    region: set[int] = set()
    stack = list(outputs)
    while stack:
        i = stack.pop()
        if i not in region and i not in done:
            region.add(i)
            stack += side.node(i).inputs
    first = [
        i
        for i in sorted(region)
        if not side.is_soft(i) and all(j in done or side.is_soft(j) for j in side.node(i).inputs)
    ]
    return first or [i for i in sorted(region) if all(j in done for j in side.node(i).inputs)]


@dataclass(frozen=True)
class Pair:
    """An operation of each side at which the programs part.

    Attributes:
        torch: node of the PyTorch side.
        jax: node of the JAX side.
        overlap: share of their operands that are the same.
    """

    torch: int
    jax: int
    overlap: float


def first_pairs(
    alignment: Alignment, torch_outputs: Sequence[int], jax_outputs: Sequence[int]
) -> list[Pair]:
    """Return the pairs of operations at which the sides part, the most likely one first."""
    torch, jax = alignment.torch, alignment.jax
    torch_first, jax_first = entries(torch, torch_outputs), entries(jax, jax_outputs)
    found = []
    for a in torch_first:
        mine = torch.operand_classes(a)
        for b in jax_first:
            other = jax.operand_classes(b)
            if mine & other:
                found.append(Pair(a, b, len(mine & other) / len(mine | other)))
    kinds = {
        pair: (
            torch.node(pair.torch).size != jax.node(pair.jax).size,
            family(torch.node(pair.torch).op) != family(jax.node(pair.jax).op),
        )
        for pair in found
    }
    found.sort(key=lambda p: (p.torch, -p.overlap, *kinds[p], p.jax))
    if not found and (torch_first or jax_first):  # one side may end before the other one
        first = (*torch_first, *torch_outputs)[0], (*jax_first, *jax_outputs)[0]
        found = [Pair(*first, 0.0)]
    return found


_FAMILIES = (
    "mm bmm addmm dot_general matmul",
    "convolution conv_general_dilated",
    "add sub rsub add_any",
    "mul div reciprocal integer_pow pow square rsqrt sqrt",
    "sum mean reduce_sum cumsum var",
    "amax max reduce_max max_pool2d_with_indices reduce_window_max",
    "where masked_fill select_n",
    "tanh erf erfc sigmoid logistic exp relu clamp_min max",
)


def family(op: str) -> int | str:
    """Return the family of an operation, such as products, or its name."""
    op = op.rstrip("_")
    return next((n for n, names in enumerate(_FAMILIES) if op in names.split()), op)
