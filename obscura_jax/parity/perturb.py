"""Change the weights of a module, so that a comparison can tell all of them apart."""

import copy
from typing import TypeVar

_Module = TypeVar("_Module")


def perturbed(module: _Module, seed: int = 0) -> _Module:
    """Return a copy of a PyTorch module, every parameter and float buffer of which is changed.

    A new module often has biases of 0 and scales of 1. Then a program that leaves them out, or
    exchanges two of them, computes the same. Convert the weights of the copy.

    Args:
        module: the module.
        seed: seed of the changes: a relative one of 0.3 and an absolute one of 0.05, both times a
            standard normal number. Variances of batch norms stay positive.
    """
    import torch

    changed = copy.deepcopy(module)
    generator = torch.Generator().manual_seed(seed)
    state = changed.state_dict()  # type: ignore[attr-defined]
    for name, value in state.items():
        if not value.is_floating_point():
            continue
        relative, absolute = (
            torch.randn(value.shape, generator=generator).to(value) for _ in range(2)
        )
        value.mul_(1 + 0.3 * relative).add_(0.05 * absolute)
        if name.endswith("running_var"):
            value.abs_().add_(0.05)
    return changed
