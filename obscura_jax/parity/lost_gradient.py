"""Find where a program loses a gradient that the other program has."""

from collections.abc import Iterable
from dataclasses import dataclass

from obscura_jax.parity.align import Side
from obscura_jax.parity.backward import Backward


class BackwardSide:
    """The backward pass of one side with the classes of its values."""

    def __init__(self, side: Side, backward: Backward, gradients: Iterable[int]) -> None:
        self.side, self.backward = side, backward
        self._consumers = side.trace.consumers()
        self._by_class: dict[int, list[int]] = {}
        for i, known in side.classes.items():
            if i not in backward.forward:
                self._by_class.setdefault(known, []).append(i)
        self._continued = {
            value
            for i in side.trace.ancestors(gradients)
            if (p := side.node(i).print) is not None and p.kind != "empty"
            for value in backward.forward.get(i, ())
        }

    def of_class(self, known: int) -> list[int]:
        """Return the values of the program, not of its backward pass, of a class."""
        return self._by_class.get(known, [])

    def value_classes(self, index: int) -> set[int]:
        """Return the classes of the values whose gradient an operation continues."""
        values = self.backward.forward.get(index, ())
        return {self.side.classes[i] for i in values if i in self.side.classes}

    def continues(self, values: Iterable[int]) -> bool:
        """Return True if a gradient other than 0 goes through one of some values."""
        return any(i in self._continued for i in values)

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

    def user_like(self, value: int, classes: set[int]) -> int:
        """Return the operation that uses a value, best one whose result is of some classes."""
        users = [i for i in self.users(value) if not self.side.node(i).layout]
        likely = [i for i in users if self.side.classes.get(i) in classes]
        return next(iter([*likely, *users, value]))

    def results_after(self, index: int) -> set[int]:
        """Return the classes of what is computed from a value."""
        users = self.users(index)
        return {self.side.classes[i] for i in users if i in self.side.classes}


@dataclass(frozen=True)
class Lost:
    """A gradient that only one side has.

    Attributes:
        value: the value of the side that has the gradient.
        here: the operation of that side through which it flows.
        there: the operation of the other side through which it does not.
        words: a description.
    """

    value: int
    here: int
    there: int
    words: str


def lost_gradient(own: BackwardSide, other: BackwardSide, entry: int) -> Lost | None:
    """Return where the other side loses the gradient that an operation continues, or None.

    Args:
        own: the side of the operation.
        other: the other side.
        entry: the operation of the backward pass.
    """
    twins = [
        (value, twin)
        for value in own.backward.forward.get(entry, ())
        if value in own.side.classes
        for twin in other.of_class(own.side.classes[value])
    ]
    for value, twin in reversed(twins):
        stop = other.stop_after(twin)
        if stop is not None and own.stop_after(value) is None:
            here = own.user_like(value, other.results_after(stop))
            return Lost(value, here, stop, _stopped(other, stop))
        stop = other.stop_before(twin)
        if stop is not None and own.stop_before(value) is None:
            return Lost(value, value, stop, _stopped(other, stop))
    if not twins or other.continues(twin for _, twin in twins):
        return None
    value, twin = twins[-1]
    here = own.user_like(value, other.results_after(twin))
    there = other.user_like(twin, set())
    return Lost(value, here, there, f"{other.side.trace.side} has no gradient here")


def _stopped(other: BackwardSide, stop: int) -> str:
    node = other.side.node(stop)
    name = node.op if node.op in ("detach", "stop_gradient") else "no_grad"
    where = f" at {node.source}" if node.source else ""
    return f"{other.side.trace.side} stops the gradient: {name}{where}"
