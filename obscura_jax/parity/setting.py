"""The part of a JAX program around the place where two programs part."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from obscura_jax.parity.align import Alignment, Pair, Side
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_graph import Equation, Graph
from obscura_jax.parity.jax_trace import JaxTrace
from obscura_jax.parity.relation import OUTPUT, apart
from obscura_jax.parity.trace import Node

_NEXT = 4  # ends to which the region leads
_ENTRIES = 10_000  # entries that take about as long as calling an operation
_NEARBY = 100  # operations near a region
_DEEP = 3  # operations before the region whose change may be the mend


@dataclass
class Effort:
    """A bound on the operations of a search, which does not depend on the clock.

    Attributes:
        left: operations on a few numbers; one on many counts as several.
    """

    left: int

    def spend(self, entries: int) -> bool:
        """Account for an operation on `entries` numbers; return False if nothing is left."""
        self.left -= 1 + entries // _ENTRIES
        return self.left > 0


@dataclass
class Setting:
    """The part of a JAX program around the place where the programs part.

    Attributes:
        alignment: both sides.
        pair: the operations at which they part.
        trace: the JAX trace.
        ends: values after the pair that every path to the outputs passes.
        region: positions of the operations from the matched values to the ends.
        nearby: positions of the operations that compute the operands of the region, masks and
            indices included.
        effort: how much more may be evaluated here.
    """

    alignment: Alignment
    pair: Pair
    trace: JaxTrace
    ends: list[int]
    region: list[int]
    nearby: list[int]
    effort: Effort

    @classmethod
    def around(
        cls,
        alignment: Alignment,
        pair: Pair,
        trace: JaxTrace,
        ends: list[int],
        effort: Effort,
        toward: Iterable[int] | None = None,
    ) -> "Setting":
        """Return the setting around a pair, up to the values `toward`, by default the next ends."""
        setting = cls(alignment, pair, trace, ends, [], [], effort)
        side = alignment.jax
        inside: set[int] = set()
        edge: set[int] = set()
        stack = [*(ends[:_NEXT] if toward is None else toward), pair.jax]
        while stack:
            i = stack.pop()
            if i in inside:
                continue
            if i in side.matched - side.weak or side.node(i).leaf:
                edge.add(i)
                continue
            inside.add(i)
            stack += side.node(i).inputs
        made = setting.position
        setting.region = sorted({made[i] for i in inside if i in made})
        nearby = _computing(setting, edge)
        for i in inside:
            for j in side.node(i).inputs:
                while side.node(j).layout and side.node(j).inputs and j not in inside:
                    nearby.add(made[j])
                    j = side.node(j).inputs[0]
        setting.nearby = sorted(nearby - set(setting.region))
        return setting

    @cached_property
    def made(self) -> set[int]:
        """The nodes that the region computes."""
        return {i for p in self.region for i in self.graph.equations[p].outputs}

    @cached_property
    def inside(self) -> set[int]:
        """The nodes that the region and the operations near it compute."""
        return self.made.union(*(self.graph.equations[p].outputs for p in self.nearby))

    def toward(self, nodes: Iterable[int]) -> "Setting":
        """Return the setting whose region leads to some nodes."""
        nodes = list(nodes)
        return Setting.around(self.alignment, self.pair, self.trace, self.ends, self.effort, nodes)

    def twin(self, index: int) -> int | None:
        """Return PyTorch's node with the value of a JAX node, the first that is no layout."""
        known = self.jax.classes.get(index)
        if known is None or not self.jax.is_strong(index):
            return None
        twins = self.torch.by_class.get(known, [])
        computed = [i for i in twins if not self.torch.node(i).layout]
        return next(iter([*computed, *twins]), None)

    @cached_property
    def consumers(self) -> dict[int, list[int]]:
        """The JAX nodes that use each JAX node."""
        return self.trace.consumers()

    @cached_property
    def position(self) -> dict[int, int]:
        """The position of the operation that computes each node."""
        return {i: n for n, e in enumerate(self.trace.graph.equations) for i in e.outputs}

    @property
    def graph(self) -> Graph:
        """The program."""
        return self.trace.graph

    @property
    def jax(self) -> Side:
        """The JAX side."""
        return self.alignment.jax

    @property
    def torch(self) -> Side:
        """The PyTorch side."""
        return self.alignment.torch

    def node(self, index: int) -> Node:
        """Return a node of the JAX side."""
        return self.jax.node(index)

    def equations(self, positions: Iterable[int]) -> Iterator[tuple[int, Equation]]:
        """Yield operations with their positions, those nearest to the pair first."""
        at = self.position.get(self.pair.jax, 0)
        for p in sorted(positions, key=lambda p: (abs(p - at), p)):
            yield p, self.graph.equations[p]

    def value(self, index: int) -> NDArray[Any]:
        """Return the value of one node."""
        return self.trace.values([index])[index]

    @cached_property
    def torch_region(self) -> list[int]:
        """The PyTorch nodes from the matched values to the place where the programs part."""
        side = self.torch
        inside: set[int] = set()
        stack = [*gates(side, self.pair.torch)[:4], self.pair.torch]
        while stack:
            i = stack.pop()
            if i in inside or i in side.matched - side.weak or side.node(i).leaf:
                continue
            inside.add(i)
            stack += side.node(i).inputs
        return sorted(inside)

    @cached_property
    def torch_parameters(self) -> list[int]:
        """The parameters and constants that PyTorch uses in its region."""
        found: dict[int, None] = {}
        for i in self.torch_region:
            for j in (*self.torch.operands(i), *self.torch.node(i).inputs):
                node = self.torch.node(j)
                if node.leaf and node.is_float and node.shape:
                    found[j] = None
        return list(found)

    @cached_property
    def torch_numbers(self) -> list[float]:
        """The numbers that PyTorch uses in its region."""
        found: dict[float, None] = {}
        for i in self.torch_region:
            for j in (i, *self.torch.node(i).inputs):
                node = self.torch.node(j)
                for x in node.numbers:
                    found[x] = None
                if node.leaf and node.print is not None and node.print.kind == "constant":
                    found[node.print.value] = None
        return list(found)

    @cached_property
    def candidates(self) -> list[int]:
        """JAX nodes with the values that PyTorch uses in its region, those it alone uses first."""
        theirs = [
            self.torch.classes[j]
            for i in self.torch_region
            for j in (*self.torch.operands(i), *self.torch.node(i).inputs)
            if j in self.torch.classes
        ]
        ours = {
            self.jax.classes[j]
            for p in self.region
            for j in self.graph.equations[p].inputs
            if j in self.jax.classes
        }
        wanted = dict.fromkeys(sorted(theirs, key=lambda c: c in ours))
        by_class: dict[int, list[int]] = {}
        for i, c in self.jax.classes.items():
            if c in wanted and i in self.jax.matched and self.node(i).is_float:
                by_class.setdefault(c, []).append(i)
        found: dict[int, None] = {}
        for c in wanted:
            shapes: set[tuple[int, ...]] = set()
            for i in by_class.get(c, ()):
                if self.node(i).shape not in shapes:
                    shapes.add(self.node(i).shape)
                    found[i] = None
        return list(found)

    def origins(self, index: int) -> list[int]:
        """Return a JAX node, and what layout operations made it from, one after the other."""
        found = [index]
        while (node := self.node(found[-1])).layout and node.inputs:
            found.append(node.inputs[0])
        return found

    def is_output(self, index: int, value: NDArray[Any]) -> bool:
        """Return True if a value of an output of JAX is PyTorch's."""
        torch = self.torch.trace
        twins = [a for a, b in zip(torch.outputs, self.trace.outputs, strict=True) if b == index]
        theirs = torch.values(twins)
        reach = OUTPUT * self.alignment.tolerance
        return any(x.shape == value.shape and apart(x, value) <= reach for x in theirs.values())

    def available(self, index: int, position: int) -> bool:
        """Return True if a node is computed before the operation at a position."""
        return self.node(index).leaf or self.position.get(index, 1 << 60) < position

    def with_inputs(self, position: int, inputs: Sequence[int]) -> Equation:
        """Return an operation with other operands."""
        return replace(self.graph.equations[position], inputs=tuple(inputs))


def _computing(setting: Setting, nodes: Iterable[int]) -> set[int]:
    """Return the operations that compute some nodes: a few floats, and whole masks and indices."""
    found: set[int] = set()
    stack = [(i, _DEEP) for i in nodes]
    while stack:
        i, depth = stack.pop()
        p = setting.position.get(i)
        if p is None or p in found or len(found) >= _NEARBY:
            continue
        found.add(p)
        for j in setting.node(i).inputs:
            left = depth - setting.node(j).is_float
            if left:
                stack.append((j, left))
    return found
