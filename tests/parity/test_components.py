"""Every component of chapters 2 to 4 equals its PyTorch twin, forward and backward.

In float64 the logic is compared: 1e-12 relative, where the largest measured difference is 1.2e-14.
In float32 the rounding is: four times the measured difference that stands beside each twin.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict

from tests.parity.compare import differences, run_port, run_reference
from tests.parity.twins import TWINS, Twin

every_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
LOGIC = 1e-12


def buffers(twin: Twin) -> set[str]:
    """The last names of the reference's buffers."""
    if not isinstance(twin.reference, torch.nn.Module):
        return set()
    return {name.split(".")[-1] for name, _ in twin.reference.named_buffers()}


def worst(found: dict[str, float]) -> tuple[float, float]:
    """The difference of the output, and the largest among those of the gradients."""
    return found["output"], max(v for name, v in found.items() if name != "output")


@every_twin
def test_float64(twin: Twin, x64):
    output, gradient = worst(
        differences(run_port(twin, np.float64), run_reference(twin, np.float64))
    )
    assert output <= LOGIC
    assert gradient <= LOGIC


@every_twin
def test_float32(twin: Twin):
    found = worst(differences(run_port(twin, np.float32), run_reference(twin, np.float32)))
    assert found[0] <= 4 * twin.float32_error[0]
    assert found[1] <= 4 * twin.float32_error[1]


@every_twin
def test_a_fault_is_noticed_in_float64(twin: Twin, x64):
    faulty = run_port(twin, np.float64, twin.fault)
    assert min(worst(differences(faulty, run_reference(twin, np.float64)))) > LOGIC


@every_twin
def test_a_fault_is_noticed_in_float32(twin: Twin):
    faulty = run_port(twin, np.float32, twin.fault)
    output, _ = worst(differences(faulty, run_reference(twin, np.float32)))
    assert output > 4 * twin.float32_error[0]


@every_twin
def test_vmap_over_the_rows_is_the_batch(twin: Twin, x64):
    params = unflatten_dict(twin.parameters(), sep=".")
    inputs = [jnp.asarray(x) for x in twin.values()]
    mapped = jax.jit(jax.vmap(twin.apply, (None, *(0 for _ in inputs))))
    batch = {"output": np.asarray(jax.jit(twin.apply)(params, *inputs))}
    rows = {"output": np.asarray(mapped(params, *inputs))}
    assert differences(rows, batch)["output"] <= LOGIC  # measured 0: they are the same products
    other_rows = {"output": np.asarray(mapped(params, *(x[::-1] for x in inputs)))}
    assert differences(other_rows, batch)["output"] > LOGIC


@pytest.mark.parametrize("twin", [t for t in TWINS if "mask" in buffers(t)], ids=lambda t: t.name)
def test_the_mask_that_a_reference_loads_is_the_one_it_uses(twin: Twin):
    """So a checkpoint with a wrong mask shows: as a whole, and where one key too many is seen."""
    expected = run_reference(twin, np.float32)["output"]
    module = copy.deepcopy(twin.reference)
    reloaded = dataclasses.replace(twin, reference=module)
    module.load_state_dict(twin.reference.state_dict(), strict=True)
    np.testing.assert_array_equal(run_reference(reloaded, np.float32)["output"], expected)
    for name in (name for name, _ in module.named_buffers()):
        state = {key: x.clone() for key, x in twin.reference.state_dict().items()}
        state[name][1, 2] = 0
        module.load_state_dict(state, strict=True)
        wrong = run_reference(reloaded, np.float32)["output"]
        assert np.abs(wrong - expected)[:, 1].max() > 1e-3, name
        assert not np.abs(wrong - expected)[:, 0].any(), "position 0 still sees itself alone"


@every_twin
def test_every_parameter_is_noticed(twin: Twin, x64):
    """A thousandth added to one entry of any parameter shows in the output."""
    expected = run_reference(twin, np.float64)["output"]
    inputs = [jnp.asarray(x) for x in twin.values()]
    apply = jax.jit(twin.apply)
    for name in twin.parameters():
        if name.endswith("W_key.bias"):
            continue  # shifts all scores of a row alike: softmax, and so the output, ignores it
        nudged = twin.parameters()
        nudged[name].flat[0] += 1e-3
        output = np.asarray(apply(unflatten_dict(nudged, sep="."), *inputs))
        assert differences({"output": output}, {"output": expected})["output"] > LOGIC, name
