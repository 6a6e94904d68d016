"""The backward pass of a program, as a trace whose outputs are gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.trace import Trace

FACTORS = "the factors of output"  # how the names of the leaves of the backward pass start


class NoGradientsError(ValueError):
    """A program has no gradients; the message is one sentence that says why."""


@dataclass(frozen=True)
class Backward:
    """A program's forward and backward pass in one trace.

    Attributes:
        trace: all operations; the outputs are the gradients.
        gradients: the node of the gradient of each leaf. The leaves are nodes of the trace of the
            program itself. A leaf on which no output depends has no gradient.
        forward: for each operation of the backward pass: the results of the operation of the
            program whose derivative it computes a part of.
        stops: operations of the program that let no gradient through, such as a `detach`.
    """

    trace: Trace
    gradients: dict[int, int]
    forward: dict[int, tuple[int, ...]] = field(default_factory=dict)
    stops: frozenset[int] = frozenset()

    def consumers(self, index: int) -> list[int]:
        """Return the operations of the program, not of its backward pass, that use a value."""
        return [i for i in self._consumers.get(index, ()) if i not in self.forward]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_consumers", self.trace.consumers())

    _consumers: dict[int, list[int]] = field(init=False, repr=False)


def cotangent(shape: Sequence[int], position: int) -> NDArray[np.float64]:
    """Return the fixed random factors of an output in the sum whose gradient is computed.

    Args:
        shape: shape of the output.
        position: its position among the outputs.
    """
    return np.random.default_rng(position).standard_normal(tuple(shape))
