"""Follow gradients through one program of a pair."""

from collections.abc import Iterable

from obscura_jax.parity.align import Side
from obscura_jax.parity.backward import FACTORS, Backward

# The backward pass of these may have no operation: the gradient passes unchanged.
_UNCHANGED = ("add", "add_", "sub", "sub_", "add_any", "written")


class BackwardSide:
    """The backward pass of one side with the classes of its values."""

    def __init__(self, side: Side, backward: Backward, gradients: Iterable[int]) -> None:
        self.side, self.backward = side, backward
        self._consumers = side.trace.consumers()
        self._by_class: dict[int, list[int]] = {}
        for i, known in sorted(side.classes.items()):
            if i not in backward.forward:
                self._by_class.setdefault(known, []).append(i)
        self._carrying = self._from_factors()
        self._live = self._sources_of(gradients)
        self._continued = {
            value
            for i in side.trace.ancestors(gradients) & self._carrying
            if (p := side.node(i).print) is not None and p.kind != "empty"
            for value in backward.forward.get(i, ())
        }
        self._ends = {backward.forward[i]: i for i in sorted(backward.forward.keys() & self._live)}
        self._ends.pop((), None)

    def _from_factors(self) -> set[int]:
        """Return what depends on the factors of the outputs."""
        found: set[int] = set()
        for node in self.side.trace.nodes:
            start = node.leaf and node.name.startswith(FACTORS)
            if start or not found.isdisjoint(node.inputs):
                found.add(node.index)
        return found

    def _sources_of(self, gradients: Iterable[int]) -> set[int]:
        """Return what gradients depend on; a gradient that is 0 depends on nothing."""
        found: set[int] = set()
        stack = list(gradients)
        while stack:
            i = stack.pop()
            p = self.side.node(i).print
            if i not in found and (p is None or p.kind != "empty"):
                found.add(i)
                stack += self.side.node(i).inputs
        return found

    def of_class(self, known: int) -> list[int]:
        """Return the values of the program, not of its backward pass, of a class."""
        return self._by_class.get(known, [])

    def value_classes(self, index: int) -> set[int]:
        """Return the classes of the values whose gradient an operation continues."""
        values = self.backward.forward.get(index, ())
        return {self.side.classes[i] for i in values if i in self.side.classes}

    def first_operations(self) -> list[int]:
        """Return the first operations on gradients whose results the other side does not have.

        All gradients among their operands are on both sides. Other operands, such as the slope of
        a function, may be computed in another way.
        """
        side = self.side
        return [
            i
            for i in sorted((self._live & self._carrying) - side.settled)
            if not side.is_soft(i)
            and all(
                j in side.settled or j not in self._carrying or side.is_soft(j)
                for j in side.node(i).inputs
            )
        ]

    def end_of(self, index: int) -> int:
        """Return the last operation on gradients of the same operation of the program."""
        return self._ends.get(self.backward.forward.get(index, ()), index)

    def parts(self, index: int, surely: bool) -> bool:
        """Return True if the gradients that an operation returns are not on the other side.

        Args:
            index: the operation.
            surely: whether nothing that the other side has may be computed from it either.
        """
        side = self.side
        return not (surely and index in side.benign) and self.end_of(index) not in side.settled

    def ends_like(self, classes: set[int]) -> list[int]:
        """Return the last operations on the gradients of values of some classes."""
        return sorted(
            {
                end
                for values, end in self._ends.items()
                if any(self.side.classes.get(i) in classes for i in values)
            }
        )

    def all_following(self, operations: Iterable[int]) -> list[int]:
        """Return all operations on gradients that use results and are not on the other side."""
        found: set[int] = set()
        stack = list(operations)
        while stack:
            for i in self._consumers.get(stack.pop(), ()):
                if i in self._live and i not in self.side.settled and i not in found:
                    found.add(i)
                    stack.append(i)
        return sorted(found)

    def is_hook(self, index: int) -> bool:
        """Return True for an operation that belongs to none of the program, as those of hooks."""
        node = self.side.node(index)
        return not self.backward.forward.get(index) and node.op not in _UNCHANGED

    def arrives(self, value: int) -> bool:
        """Return True if a gradient other than 0 arrives at a value."""
        stack, seen = [value], {value}
        while stack:
            i = stack.pop()
            if i in self._continued:
                return True
            for j in self._program_users(i):
                node = self.side.node(j)
                if j in self._continued:
                    return True
                if j not in seen and (node.layout or node.op in _UNCHANGED):
                    seen.add(j)
                    stack.append(j)
        return False

    def last_reached(self, value: int) -> int | None:
        """Return the operation at which a gradient arrives that does not reach a value, or None.

        Operations that are known to stop gradients do not count.
        """
        level, seen = [value], {value}
        while level:
            following = []
            for i in level:
                for j in self._program_users(i):
                    if j in seen or not self.side.node(j).is_float:
                        continue
                    if self.arrives(j):
                        return j
                    seen.add(j)
                    following.append(j)
            level = following
        return None

    def _program_users(self, index: int) -> list[int]:
        """Return the operations of the program that use a value and let gradients through."""
        return [
            i
            for i in self._consumers.get(index, ())
            if i not in self.backward.forward and i not in self.backward.stops
        ]

    def users(self, index: int) -> list[int]:
        """Return the operations of the program that use a value, and the moves in between."""
        found, stack = [], [index]
        while stack:
            for i in self._consumers.get(stack.pop(), ()):
                if i not in self.backward.forward and i not in found:
                    found.append(i)
                    if self.side.node(i).layout and i not in self.backward.stops:
                        stack.append(i)
        return sorted(found)

    def stop_after(self, value: int) -> int | None:
        """Return the operation that uses a value and lets no gradient through, or None."""
        return next((i for i in self.users(value) if i in self.backward.stops), None)

    def stop_before(self, value: int) -> int | None:
        """Return such an operation among the operands of a value, or None."""
        stack = list(self.side.node(value).inputs)
        while stack:
            i = stack.pop()
            if i in self.backward.stops:
                return i
            if self.side.node(i).layout:
                stack += self.side.node(i).inputs
        return None

    def use(self, value: int, operand: int | None) -> int:
        """Return the operation at a value or among the moves before it that uses a class."""
        stack = [value]
        while stack:
            i = stack.pop()
            inputs = self.side.node(i).inputs
            if any(self.side.classes.get(j) == operand for j in inputs):
                return i
            stack += [j for j in inputs if self.side.node(j).layout]
        return value

    def user_like(self, value: int, classes: set[int]) -> int:
        """Return the operation that uses a value, best one whose result is of some classes."""
        users = [i for i in self.users(value) if not self.side.node(i).layout]
        likely = [i for i in users if self.side.classes.get(i) in classes]
        return next(iter([*likely, *users, value]))

    def results_after(self, index: int) -> set[int]:
        """Return the classes of what is computed from a value."""
        users = self.users(index)
        return {self.side.classes[i] for i in users if i in self.side.classes}
