"""The kernels per token of decoding, compiled for an absent GPU: needs the extra `cuda-compile`."""

from dataclasses import replace

import pytest

from obscura_jax.config import PRESETS
from obscura_jax.decoding import graphs
from obscura_jax.scale import topology
from obscura_jax.scale.cuda_commands import commands_per_token, compile_with_plan
from obscura_jax.scale.mesh import make_mesh
from obscura_jax.scale.traced_programs import trace_program
from tests.test_gpu_topology import compiles
from tests.test_topology import CFG

pytestmark = compiles


def commands(cfg, rows):
    """Return the commands per token of decoding on one H100."""
    mesh = make_mesh({"data": 1}, topology.get_topology("h100:1").devices)
    lowered = trace_program("decode", mesh, cfg, rows).lower()
    return commands_per_token(compile_with_plan(lowered)[1])


@pytest.mark.gpt2_124m
def test_one_row_of_gpt2_takes_at_most_110_kernels_per_token_in_one_graph():
    found = commands(PRESETS["gpt2"], 1)
    assert found.least.commands <= 110  # greedy: 109
    assert found.most.commands <= 210  # with every filter and control: 202
    for one in (found.least, found.most):  # the only graph contains the loop over tokens
        assert (one.graphs, one.host_returns, one.inner_loops) == (0, 0, 0)


def test_without_the_options_the_loop_returns_to_the_host(monkeypatch):
    small = replace(CFG, n_layers=1)
    assert commands(small, 3).most.host_returns == 0
    monkeypatch.setattr(graphs, "_ONE_GRAPH", {})
    assert commands(small, 3).most.host_returns == 1  # per token


def test_without_wide_fusions_one_row_takes_more_kernels(monkeypatch):
    small = replace(CFG, n_layers=2)
    few = commands(small, 1).least.commands
    monkeypatch.setattr(graphs, "_WIDE_FUSIONS", {})
    assert commands(small, 1).least.commands > few + 2 * 3
