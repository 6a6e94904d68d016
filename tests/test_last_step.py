"""A JAX program that leaves out its last step is mended by a parameter or a value added there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from obscura_jax.parity import compare, jax_program, perturbed, torch_program

X = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)


@pytest.fixture(autouse=True)
def as_by_default():
    with jax.numpy_rank_promotion("allow"):
        yield


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 20)
        self.down = nn.Linear(20, 8)

    def forward(self, x):
        return self.down(torch.tanh(self.up(x)))


class Shortcut(Network):
    def forward(self, x):
        return super().forward(x) + x


def report(kind, *missing):
    """Compare a network with its port, which may leave out some of its steps."""
    torch.manual_seed(0)
    module = perturbed(kind())
    w = {name: jnp.asarray(x.numpy()) for name, x in module.state_dict().items()}

    def port(x):
        y = jnp.tanh(x @ w["up.weight"].T + w["up.bias"]) @ w["down.weight"].T
        if "bias" not in missing:
            y = y + w["down.bias"]
        if kind is Shortcut and "shortcut" not in missing:
            y = y + x
        return y

    return compare(torch_program(module, torch.from_numpy(X)), jax_program(port, X))


@pytest.mark.parametrize(
    ("kind", "missing", "words"),
    [
        (Network, "bias", "adding down.bias of PyTorch"),
        (Shortcut, "bias", "adding down.bias of PyTorch"),
        (Shortcut, "shortcut", "adding args[0]"),
    ],
)
def test_a_missing_last_step_is_the_mend(kind, missing, words):
    assert report(kind).equal
    found = report(kind, missing)
    assert found.exit_code == 1
    assert found.complete
    assert [finding.mend.words for finding in found.findings] == [words]


def test_two_missing_steps_are_two_places():
    found = report(Shortcut, "bias", "shortcut")
    assert found.complete
    mends = [finding.mend.words for finding in found.findings]
    assert mends == ["adding down.bias of PyTorch", "adding args[0]"]
