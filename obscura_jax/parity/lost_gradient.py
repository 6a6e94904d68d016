"""Find where a program loses a gradient that the other program has."""

from dataclasses import dataclass

from obscura_jax.parity.backward_side import BackwardSide


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
    twins = _twins(own, other, entry)
    for value, twin in twins:
        found = _stopped(own, other, value, twin)
        if found is not None:
            return found
    for value, twin in twins:
        if other.arrives(twin):
            return None
        there = other.last_reached(twin)
        if there is not None:
            here = own.user_like(value, other.results_after(twin))
            return Lost(value, here, there, f"{other.side.trace.side} has no gradient here")
    return None


def _twins(own: BackwardSide, other: BackwardSide, entry: int) -> list[tuple[int, int]]:
    """Return the values whose gradient an operation continues, each with its twins."""
    return [
        (value, twin)
        for value in reversed(own.backward.forward.get(entry, ()))
        if value in own.side.classes
        for twin in other.of_class(own.side.classes[value])
    ]


def _stopped(own: BackwardSide, other: BackwardSide, value: int, twin: int) -> Lost | None:
    """Return the operation next to a value that lets no gradient through."""
    stop = other.stop_after(twin)
    after = stop is not None and own.stop_after(value) is None
    if not after:
        stop = other.stop_before(twin) if own.stop_before(value) is None else None
    if stop is None:
        return None
    node = other.side.node(stop)
    name = node.op if node.op in ("detach", "stop_gradient") else "no_grad"
    where = f" at {node.source}" if node.source else ""
    words = f"{other.side.trace.side} stops the gradient: {name}{where}"
    same = own.of_class(other.side.classes.get(stop, -1))
    if not node.layout and same:  # an operation without gradient that the other side has too
        here = same[0]
    else:
        known = other.side.classes.get(stop)
        here = own.user_like(value, other.results_after(stop)) if after else own.use(value, known)
    return Lost(value, here, stop, words)
