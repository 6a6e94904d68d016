"""Perturbed weights tell biases of 0 and scales of 1 from each other."""

import pytest
import torch

from obscura_jax.parity.perturb import perturbed


@pytest.fixture
def module():
    torch.manual_seed(0)
    made = torch.nn.Sequential(
        torch.nn.Linear(7, 5), torch.nn.BatchNorm1d(5), torch.nn.LayerNorm(5)
    )
    return made.eval()


def test_every_float_is_changed_and_the_module_itself_is_not(module):
    before = {name: x.clone() for name, x in module.state_dict().items()}
    after = perturbed(module).state_dict()
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name])
        changed = x.is_floating_point()
        assert bool((x != after[name]).all()) is changed, name
    assert "1.num_batches_tracked" in before


def test_equal_parameters_become_different(module):
    before, after = module.state_dict(), perturbed(module).state_dict()
    assert torch.equal(before["1.weight"], before["2.weight"])
    assert not torch.isclose(after["1.weight"], after["2.weight"]).any()


def test_variances_stay_positive():
    norm = torch.nn.BatchNorm1d(500)
    norm.running_var.mul_(1e-3)
    after = perturbed(norm)
    assert after.running_var.min() > 0
    assert after.weight.min() < after.weight.max()
    assert (after.bias < 0).any()  # the control: other values get both signs


def test_the_seed_decides(module):
    first, again, other = (perturbed(module, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(first["0.weight"], again["0.weight"])
    assert not torch.equal(first["0.weight"], other["0.weight"])
