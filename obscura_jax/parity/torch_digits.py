"""The precision in which a PyTorch program computes each value, although it runs in float64."""

from collections.abc import Iterable, Sequence
from typing import Any

from obscura_jax.parity.trace import Node

# Binary digits of the numbers of each type.
DIGITS = {
    "float64": 53,
    "complex128": 53,
    "float32": 24,
    "complex64": 24,
    "float16": 11,
    "bfloat16": 8,
    "float8_e4m3fn": 4,
    "float8_e5m2": 3,
}
_DEFAULT = DIGITS["float32"]
_FULL = ("torch.float64", "torch.complex128")


def tensors_of(modules: Iterable[Any]) -> list[Any]:
    """Return all parameters and buffers of modules, a shared one once for each name."""
    return [
        tensor
        for module in modules
        for named in (module.named_parameters, module.named_buffers)
        for _, tensor in named(remove_duplicate=False)
    ]


class OwnDigits:
    """Binary digits of the values of a program, in the types that it asks for.

    A tensor that the program creates without a type counts as float32, PyTorch's default. A cast to
    float64 keeps the digits, because during the run it may be one to the type of another tensor.
    """

    def __init__(self) -> None:
        self._given: dict[int, int] = {}
        self._known: dict[int, int] = {}

    def given(self, tensor: Any, dtype: Any) -> None:
        """Note the type that a parameter, a buffer or an input has outside of the run."""
        self._given[id(tensor)] = digits_of(dtype)

    def add_leaf(self, node: Node, tensor: Any) -> None:
        """Note a leaf."""
        digits = digits_of(tensor.dtype)
        self._known[node.index] = self._given.get(id(tensor), min(digits, _DEFAULT))

    def add(self, node: Node, nodes: Sequence[Node], asked: Any = None) -> bool:
        """Note the result of an operation; return True if it is rounded to a lower precision.

        Args:
            node: the result.
            nodes: the nodes of the trace.
            asked: the type that the program asks for, if any.
        """
        operands = [nodes[i] for i in node.inputs if nodes[i].is_float]
        arrays = [x for x in operands if x.shape] or operands  # numbers do not raise the precision
        before = max((self._known[x.index] for x in arrays), default=_DEFAULT)
        own = before if asked is None or str(asked) in _FULL else digits_of(asked)
        self._known[node.index] = own
        return bool(operands) and own < before


def digits_of(dtype: Any) -> int:
    """Return the binary digits of a type of PyTorch; the default's for integers."""
    return DIGITS.get(str(dtype).removeprefix("torch."), _DEFAULT)
