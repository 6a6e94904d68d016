"""Changes of parameters: PyTorch's parameter in the place of one of JAX's, or transposed."""

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from obscura_jax.parity.changes import Change, Loaded, operand_of
from obscura_jax.parity.jax_graph import Equation
from obscura_jax.parity.relation import arrangements
from obscura_jax.parity.setting import Setting


def changes(setting: Setting) -> Iterator[Change]:
    """Yield PyTorch's parameters for those of the JAX region, in every order of the axes."""
    theirs = setting.torch_parameters
    values = setting.torch.trace.values(theirs)
    for p, equation in setting.equations([*setting.region, *setting.nearby]):
        for at, old in enumerate(equation.inputs):
            node = setting.node(old)
            if not node.leaf or not node.is_float or not node.shape or node.size < 2:
                continue
            for new in theirs:
                if setting.torch.node(new).size == node.size and new in values:
                    yield from _loaded(setting, p, at, new, values[new])


def _loaded(
    setting: Setting, position: int, at: int, new: int, value: NDArray[Any]
) -> Iterator[Change]:
    equation = setting.graph.equations[position]
    old = equation.inputs[at]
    classes = setting.torch.classes.get(new), setting.jax.classes.get(old)
    same = classes[0] is not None and classes[0] == classes[1]
    mine, theirs = setting.node(old), setting.torch.node(new)
    for order, _ in arrangements(value, mine.shape):
        if same:
            words = f"{mine.name} transposed" if len(mine.shape) == 2 else f"{mine.name} permuted"
            kind = "transpose"
        else:
            words, kind = f"{theirs.name} of PyTorch for {mine.name}", "parameter"

        def build(there: Equation, value: NDArray[Any], order: tuple[int, ...] = order) -> Equation:
            arranged = value.transpose(order).reshape(mine.shape)
            return operand_of(there, at, lambda x: arranged)

        changed, loaded = {position: build(equation, value)}, {position: Loaded(new, build)}
        yield Change(kind, equation.outputs[0], words, changed, loaded=loaded)
