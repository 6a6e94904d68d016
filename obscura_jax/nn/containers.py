"""Base classes of modules: one that takes a config, and torch's containers with their names."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
from jaxtyping import Array, Float

from obscura_jax.config import GPTConfig


class ConfiguredModule(nn.Module):
    """Base of modules that take a `GPTConfig` or a dictionary such as `GPT_CONFIG_124M`."""

    if TYPE_CHECKING:
        cfg: GPTConfig
    else:  # the argument; the attribute is always a GPTConfig
        cfg: GPTConfig | Mapping[str, Any]

    def __post_init__(self) -> None:
        self.cfg = GPTConfig.of(self.cfg)
        super().__post_init__()


class ModuleList(nn.Module):
    """A list of modules, named "0", "1", ... as in torch.nn.ModuleList."""

    modules: Sequence[Any]
    preserve_adopted_names = True  # Linen would call them modules_0, modules_1, ...

    def __post_init__(self) -> None:
        self.modules = tuple(
            module.clone(parent=None, name=str(i)) for i, module in enumerate(self.modules)
        )
        super().__post_init__()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.modules)


class Sequential(ModuleList):
    """Modules that are applied in order, named as in torch.nn.Sequential."""

    def __call__(self, x: Float[Array, "*batch d_in"]) -> Float[Array, "*batch d_out"]:
        """Apply the modules in order and return the last output."""
        for module in self.modules:
            x = module(x)
        return x
