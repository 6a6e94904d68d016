"""Programs compiled for absent GPUs. Tests that compile need the extra `cuda-compile`, as in CI."""

import importlib.util
import json
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from obscura_jax.config import PRESETS
from obscura_jax.scale import nvidia, topology
from obscura_jax.scale.cuda_commands import commands_per_token, compile_with_plan, launch_report
from obscura_jax.scale.mesh import make_mesh
from obscura_jax.scale.nvidia import GPUS, gpu_devices
from obscura_jax.scale.roofline import roofline
from obscura_jax.training.initial import gpt2_init
from tests.test_cuda_commands import PLAN
from tests.test_topology import CFG, refused

compiles = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="jax-cuda12-plugin is not installed: the extra cuda-compile",
)
ONE_GRAPH = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUSTOM_CALL,WHILE,CONDITIONAL",
    "xla_gpu_graph_min_graph_size": 1,
}


@compiles
@pytest.mark.parametrize(
    ("program", "name", "sizes", "kind"),
    [
        ("train", "h100:2x2", {"fsdp": 4}, "all-gather"),
        ("prefill", "a100:4", {"data": 2, "model": 2}, "all-reduce"),
        ("decode", "h100:4", {"data": 2, "model": 2}, "all-reduce"),
    ],
)
def test_every_program_compiles(program, name, sizes, kind):
    found = topology.analyze_program(topology.get_topology(name), CFG, program, sizes, 4)
    assert found["chips"] == 4
    memory = found["memory"]
    assert 0 < memory["arguments"] < memory["peak"] < memory["chip"] == 72e9
    assert kind in found["collectives"]
    assert found["sent"] > 0
    assert ("launches" in found) == (program == "decode")
    json.dumps(found)


@compiles
def test_a_sharded_step_sends_the_calculated_bytes():
    """The step gathers matrices twice in bfloat16, and scatters float32 gradients once."""
    cfg = replace(CFG, vocab_size=128, emb_dim=512, n_layers=5)
    found = topology.analyze_program(topology.get_topology("h100:4"), cfg, "train", {"fsdp": 4}, 4)
    matrices = cfg.n_layers * 12 * 512**2
    least = (2 * 2 + 4) * matrices * 3 / 4
    assert 1 <= found["sent"] / least < 1.1  # 1.01 measured: embeddings, vectors


SMALL = replace(CFG, n_layers=1)
KEY = jax.random.key(0)


@compiles
def test_a_batch_that_exceeds_the_memory_is_refused():
    """XLA:GPU compiles it; the check is ours."""
    gpu = topology.get_topology("h100:1")
    found = topology.analyze_program(gpu, SMALL, "decode", {"data": 1}, 3)
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(gpt2_init(SMALL, KEY)))
    weights, caches = 2 * counted, 2 * 3 * SMALL.n_layers * 64 * 64 * 2
    memory = found["memory"]
    assert 1 <= memory["arguments"] / (weights + caches) < 1.05  # 1.008 measured: request, state

    small = replace(gpu, chip=replace(gpu.chip, memory=memory["peak"] - 1))
    with pytest.raises(topology.DoesNotFitError, match=r"3 rows need .* GiB per chip, which exc"):
        topology.analyze_program(small, SMALL, "decode", {"data": 1}, 3)


@compiles
def test_the_largest_batch_fits_and_a_larger_one_does_not():
    gpu = topology.get_topology("h100:1")
    first = topology.analyze_program(gpu, SMALL, "decode", {"data": 1}, 2_000_000)
    large = topology.largest_batch(gpu, SMALL, "decode", {"data": 1}, first)
    assert 0.9 < large["memory"]["peak"] / large["memory"]["chip"] <= 1
    with pytest.raises(topology.DoesNotFitError):
        topology.analyze_program(gpu, SMALL, "decode", {"data": 1}, large["batch"] * 9 // 8)


@compiles
@pytest.mark.gpt2_124m
def test_one_row_of_gpt2_is_bound_by_launches():
    found = topology.analyze_program(
        topology.get_topology("h100:1"), PRESETS["gpt2"], "decode", {"data": 1}, 1
    )
    launches, best = found["launches"], found["roofline"]
    assert best["bound"] == "memory"
    weights_and_cache = 2 * 124_439_808 + 2 * 12 * 1024 * 768 * 2
    assert best["memory"] == pytest.approx(weights_and_cache / 3.35e12, rel=1e-3)  # 3e-5 measured
    assert launches["bound"] == "launch"
    assert launches["seconds"][0] > best["memory"]
    assert launches["sampling"]["commands"] > launches["greedy"]["commands"] > 12 * 4


@compiles
@pytest.mark.parametrize("kind", GPUS)
def test_every_kind_of_gpu_compiles_a_loop_into_one_graph(kind):
    assert commands_per_token(loop_on(GPUS[kind])).most.host_returns == 0


@compiles
def test_without_versions_a_loop_is_not_part_of_a_graph(monkeypatch):
    without = re.sub(r".*_version.*\n", "", nvidia._TARGET)
    assert without.count("\n") == nvidia._TARGET.count("\n") - 6
    monkeypatch.setattr(nvidia, "_TARGET", without)
    assert commands_per_token(loop_on(GPUS["h100"])).most.host_returns == 1


def loop_on(gpu):
    """Return the plan of a loop over products on one GPU."""
    mesh = make_mesh({"data": 1}, gpu_devices(gpu, "1"))
    x = jax.ShapeDtypeStruct((37, 37), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))

    def loop(x):
        return lax.while_loop(lambda y: (y < 9).all(), lambda y: jnp.tanh(y @ x) + 1, x)

    return compile_with_plan(jax.jit(loop).lower(x), ONE_GRAPH)[1]


@compiles
def test_hosts_and_their_gpus_are_separate_devices():
    devices = topology.get_topology("b200:3x2").devices
    assert [device.process_index for device in devices] == [0, 0, 1, 1, 2, 2]
    assert {device.device_kind for device in devices} == {"NVIDIA B200"}


def test_the_longer_of_launches_and_work_is_the_bound():
    chip = GPUS["h100"].chip
    short, long = roofline(chip, 0, 3.35e12 * 1e-6, 0), roofline(chip, 0, 3.35e12 * 1e-3, 0)
    found = launch_report(PLAN, short)
    assert found["greedy"]["commands"] == 6
    assert found["seconds"] == pytest.approx((12e-6, 18e-6))
    assert found["bound"] == "launch"
    assert launch_report(PLAN, long)["bound"] == "memory"


@pytest.mark.parametrize("shape", ["0", "8x", "x8", "2x2x2", "-1", "8 ", "1e3", "four"])
def test_invalid_shapes_fail_in_one_line(shape, capsys):
    refused(["--topology", f"h100:{shape}"], "is not a number of GPUs; give a number", capsys)


def test_a_missing_plugin_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "jax_cuda12_plugin", None)
    refused(["--topology", "h100:8"], "'.[cuda-compile]'", capsys)
