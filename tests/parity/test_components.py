"""Every component of chapters 2 to 4 equals its PyTorch twin, forward and backward.

The float64 tests compare the logic: they allow a relative difference of 1e-12, and the largest
measured one is 1.7e-14. The float32 tests compare the rounding: they allow four times the measured
difference of each twin, which is in docs/data/components.json.
"""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import unflatten_dict

from docs.hooks.data_files import load
from tests.parity.compare import differences, run_port, run_reference
from tests.parity.twins import TWINS, Twin

every_twin = pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
LOGIC = 1e-12
MEASURED = {row["component"]: row for row in load("components")["rows"]}


def buffers(twin: Twin) -> set[str]:
    """Return the last parts of the names of the reference's buffers."""
    if not isinstance(twin.reference, torch.nn.Module):
        return set()
    return {name.split(".")[-1] for name, _ in twin.reference.named_buffers()}


def worst(found: dict[str, float]) -> tuple[float, float]:
    """Return the difference of the output, and the largest difference of the gradients."""
    return found["output"], max(v for name, v in found.items() if name != "output")


def test_the_measured_components_are_the_twins():
    assert [(row["component"], row["ours"]) for row in MEASURED.values()] == [
        (twin.name, twin.home) for twin in TWINS
    ]


@pytest.mark.slow
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
    output, gradient = MEASURED[twin.name]["float32"]
    assert found[0] <= 4 * output
    assert found[1] <= 4 * gradient


@every_twin
def test_a_fault_is_detected_in_float64(twin: Twin, x64):
    faulty = run_port(twin, np.float64, twin.fault)
    assert min(worst(differences(faulty, run_reference(twin, np.float64)))) > LOGIC


@every_twin
def test_a_fault_is_detected_in_float32(twin: Twin):
    faulty = run_port(twin, np.float32, twin.fault)
    output, _ = worst(differences(faulty, run_reference(twin, np.float32)))
    assert output > 4 * MEASURED[twin.name]["float32"][0]


@every_twin
def test_vmap_over_rows_equals_the_batch(twin: Twin, x64):
    params = unflatten_dict(twin.parameters(), sep=".")
    inputs = [jnp.asarray(x) for x in twin.values()]
    mapped = jax.jit(jax.vmap(twin.apply, (None, *(0 for _ in inputs))))
    batch = {"output": np.asarray(jax.jit(twin.apply)(params, *inputs))}
    rows = {"output": np.asarray(mapped(params, *inputs))}
    assert differences(rows, batch)["output"] <= LOGIC  # measured: 0
    other_rows = {"output": np.asarray(mapped(params, *(x[::-1] for x in inputs)))}
    assert differences(other_rows, batch)["output"] > LOGIC


@pytest.mark.parametrize("twin", [t for t in TWINS if "mask" in buffers(t)], ids=lambda t: t.name)
def test_a_reference_uses_the_mask_that_it_loads(twin: Twin):
    """So a checkpoint with a wrong mask changes the output, at the row with the wrong entry."""
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
        assert not np.abs(wrong - expected)[:, 0].any(), "position 0 still attends to itself only"


@every_twin
def test_every_parameter_matters(twin: Twin, x64):
    """Adding 0.001 to one entry of any parameter changes the output."""
    expected = run_reference(twin, np.float64)["output"]
    inputs = [jnp.asarray(x) for x in twin.values()]
    apply = jax.jit(twin.apply)
    for name in twin.parameters():
        if name.endswith("W_key.bias"):
            continue  # shifts all scores of a row equally, so softmax ignores it
        nudged = twin.parameters()
        nudged[name].flat[0] += 1e-3
        output = np.asarray(apply(unflatten_dict(nudged, sep="."), *inputs))
        assert differences({"output": output}, {"output": expected})["output"] > LOGIC, name
