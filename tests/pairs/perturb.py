"""Random changes of a module's weights, so that no bias is 0 and no scale is 1."""

import torch


def perturb(module):
    """Change every parameter and float buffer of `module`; variances stay positive."""
    for name, value in module.state_dict().items():
        if not value.is_floating_point():
            continue
        value.mul_(1 + 0.3 * torch.randn_like(value))
        value.add_(0.05 * torch.randn_like(value))
        if name.endswith("running_var"):
            value.abs_().add_(0.05)
