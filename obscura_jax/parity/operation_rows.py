"""The list of all operations of two programs: each next to its match on the other side."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from obscura_jax.parity.findings import Operation


class Row(NamedTuple):
    """A PyTorch operation and a JAX operation with equal values, or one of them alone.

    Attributes:
        torch: the operation in PyTorch, or None.
        jax: the operation in JAX, or None.
    """

    torch: Operation | None
    jax: Operation | None

    @property
    def equal(self) -> bool:
        """True if the value is on both sides, even if the list lacks one of its operations."""
        return all(operation is None or operation.match is not None for operation in self)


def rows_of(operations: Sequence[Operation]) -> Iterator[Row]:
    """Yield every operation once or more, in the order of both programs as far as possible.

    An operation is repeated if several on the other side have its value.
    """
    torch = {o.index: o for o in operations if o.side == "PyTorch"}
    jax = {o.index: o for o in operations if o.side == "JAX"}
    matches = {o.match for o in torch.values()}
    waiting = sorted(jax)
    position = 0

    def before(end: int | None) -> Iterator[Row]:
        """Yield the JAX operations before `end` that are the match of no PyTorch operation."""
        nonlocal position
        while position < len(waiting) and (end is None or waiting[position] < end):
            index = waiting[position]
            position += 1
            if index not in matches:
                match = jax[index].match
                yield Row(None if match is None else torch.get(match), jax[index])

    for index in sorted(torch):
        match = torch[index].match
        if match in jax:
            yield from before(match)
        yield Row(torch[index], None if match is None else jax.get(match))
    yield from before(None)
