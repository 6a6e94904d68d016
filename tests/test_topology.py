"""Programs compiled for an absent TPU. Tests that compile need libtpu (extra `tpu`), as in CI.

Those for GPUs are in test_gpu_topology.py.
"""

import importlib.util
import json
import math
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.cli.main import main
from obscura_jax.nn.scan import hidden_states, stack_blocks
from obscura_jax.scale import topology
from obscura_jax.scale.collectives import collectives
from obscura_jax.scale.nvidia import GPUS
from obscura_jax.scale.roofline import CHIPS, communication_seconds, matrix_flops, roofline
from obscura_jax.training.initial import gpt2_init
from tests.support import processes
from tests.support.pages import documented_keys

compiles = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: the extra tpu"
)
CFG = GPTConfig(
    vocab_size=509,
    context_length=64,
    emb_dim=64,
    n_heads=4,
    n_layers=3,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)


@pytest.fixture(scope="module")
def slice_():
    return topology.get_topology("v5e:2x2")


@compiles
@pytest.mark.parametrize("sizes", [{"fsdp": 4}, {"data": 2, "model": 2}])
@pytest.mark.parametrize("program", ["train", "prefill", "decode"])
def test_every_program_compiles(program, sizes, slice_):
    found = topology.analyze_program(slice_, CFG, program, sizes, 4)
    assert found["chips"] == 4
    memory = found["memory"]
    assert 0 < memory["arguments"] < memory["peak"] < memory["chip"] == CHIPS["v5e"].memory
    assert found["roofline"]["seconds"] == max(
        found["roofline"][name] for name in ("compute", "memory", "network")
    )
    kinds = found["collectives"].keys()
    assert kinds
    if sizes == {"fsdp": 4}:
        assert "all-gather" in kinds
    matrices = CFG.n_layers * 12 * 64 * 64
    head = 509 * 64
    if program == "decode":  # per token: all matrices, and attention over 64 slots
        products = 2 * 4 * (matrices + head + CFG.n_layers * 2 * 64 * 64)
        assert found["flops"] == products / 4
    json.dumps(found)
    assert set(found) <= documented_keys("obscura compile --json")


@compiles
def test_arguments_have_the_calculated_size(slice_):
    found = topology.analyze_program(slice_, CFG, "decode", {"data": 4}, 4)
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(gpt2_init(CFG, KEY)))
    weights, caches = 2 * counted, 2 * CFG.n_layers * 64 * 64 * 2
    assert weights + caches <= found["memory"]["arguments"] < 1.6 * (weights + caches)  # tiles


KEY = jax.random.key(0)


@compiles
def test_a_sharded_step_sends_the_calculated_bytes(slice_):
    """The step gathers matrices twice in bfloat16, and scatters float32 gradients once."""
    cfg = replace(CFG, vocab_size=128, emb_dim=512, n_layers=5)
    found = topology.analyze_program(slice_, cfg, "train", {"fsdp": 4}, 4)
    matrices = cfg.n_layers * 12 * 512**2
    least = (2 * 2 + 4) * matrices * 3 / 4
    assert 1 <= found["sent"] / least < 1.2  # 1.07 measured: embeddings, vectors


TWICE = """
from obscura_jax.scale.topology import analyze_program, get_topology
from tests.test_topology import CFG

for _ in range(2):
    print(analyze_program(get_topology("v5e:2x2"), CFG, "decode", {"data": 4}, 4)["batch"])
"""


@compiles
def test_a_compilation_cache_causes_no_error_or_warning(tmp_path):
    """JAX cannot read these programs back without a TPU; they are silently compiled again."""
    always = {"MIN_COMPILE_TIME_SECS": "0", "MIN_ENTRY_SIZE_BYTES": "-1"}
    env = {f"JAX_PERSISTENT_CACHE_{name}": value for name, value in always.items()}
    env["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path)
    done = processes.run(sys.executable, "-W", "error::UserWarning", "-c", TWICE, env=env)
    assert (done.stdout.split(), done.returncode) == (["4", "4"], 0), done.stderr
    assert any(tmp_path.iterdir())


@compiles
def test_the_largest_batch_fits_and_a_larger_one_does_not(slice_):
    # With a large cache the largest batch is small; libtpu needs minutes for hundreds of thousands.
    cfg = replace(CFG, context_length=1024, emb_dim=512, n_layers=12)
    first = topology.analyze_program(slice_, cfg, "decode", {"data": 4}, 512)
    large = topology.largest_batch(slice_, cfg, "decode", {"data": 4}, first)
    assert large["batch"] % 4 == 0
    assert 0.9 < large["memory"]["peak"] / large["memory"]["chip"] <= 1
    with pytest.raises(topology.DoesNotFitError):
        topology.analyze_program(
            slice_, cfg, "decode", {"data": 4}, large["batch"] * 9 // 8 // 4 * 4
        )


@compiles
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--topology", "v5e:5x7"], "unknown topology 'v5e:5x7'"),
        (["--topology", "v5e:2x2", "--mesh", "data=3"], "data=3 needs 3 devices, but there are 4"),
        (["--topology", "v5e:2x2", "--mesh", "model=4", "--preset", "gpt2-xl"], "n_heads=25"),
        (["--topology", "v5e:2x2", "--batch-size", "6"], "use a multiple of 4"),
        (["--topology", "v5e:2x2", "--batch-size", "4000000"], "exceeds"),
    ],
)
def test_invalid_options_fail_in_one_line(words, message, capsys):
    refused(words, message, capsys)


@pytest.mark.parametrize("name", ["v3:8", "h1000:8", "v5e", "v5e:", "h100", "h100:", ""])
def test_unknown_topologies_fail_in_one_line(name, capsys):
    refused(["--topology", name], "give a TPU (v4, v5e, v5p, v6e) and a shape", capsys)
    refused(["--topology", name], "or a GPU (a100, h100, h200, b200, l4) and a number", capsys)


def test_a_missing_libtpu_is_reported(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "libtpu", None)
    refused(["--topology", "v5e:2x2"], "needs libtpu", capsys)


def refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compile", *words])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert message in error


# Counting.


@pytest.mark.slow
def test_matrix_products_in_loops_are_counted():
    model, params = GPTModel(CFG), gpt2_init(CFG, KEY)
    ids = jnp.zeros((2, 64), jnp.int32)
    want = 2 * 2 * 64 * (CFG.n_layers * 12 * 64 * 64 + CFG.n_layers * 2 * 64 * 64)
    for tree in (params, stack_blocks(params)):
        jaxpr = jax.make_jaxpr(lambda p: hidden_states(model, p, ids))(tree)
        assert matrix_flops(jaxpr.jaxpr) == want

    def gradient(p):
        return jax.grad(lambda p: hidden_states(model, p, ids, remat="blocks").sum())(p)

    # Once forward, once recomputed except the last product of each block, twice backward.
    again = 4 * want - 2 * 2 * 64 * CFG.n_layers * 4 * 64 * 64
    assert matrix_flops(jax.make_jaxpr(gradient)(stack_blocks(params)).jaxpr) == again


def test_the_slowest_resource_is_the_bound():
    found = roofline(CHIPS["v5e"], 197e12, 0.819e12, 2)
    assert (found["compute"], found["memory"], found["network"]) == (1, 1, 2)
    assert (found["bound"], found["seconds"]) == ("network", 2)


HLO = """HloModule m, num_partitions=8

%cond.1 (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(13)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%branch.2 (x: f32[4]) -> f32[4] {
  ROOT %e = f32[4] all-to-all(%x), channel_id=10, replica_groups={{0,1}}
}

%body.1 (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %two..sunk = s32[]{:T(128)} constant(2)
  %j = s32[] get-tuple-element(%p), index=0
  %i = s32[]{:T(128)} add(%j, %two..sunk)
  %n = f32[4] conditional(%k, %x, %x), branch_computations={%branch.1, %branch.2}
  %g = bf16[8,4]{1,0} all-gather(%x), channel_id=3, replica_groups={{0,1}}
  %h = bf16[8,4]{1,0} all-gather(%x), channel_id=3, replica_groups={{0,1}}
  ROOT %t = (s32[], f32[8,4]) tuple(%i, %g)
}

%all-reduce-scatter.clone.1 (a: f32[16,8]) -> f32[16,2] {
  %r = f32[16,8]{0,1:T(8,128)} all-reduce(%a), channel_id=9, replica_groups={{0,1,2,3},{4,5,6,7}}
  ROOT %part = f32[16,2]{0,1:T(8,128)} dynamic-slice(%r, %zero, %n), dynamic_slice_sizes={16,2}
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %w = (s32[], f32[8,4]) while(%x), condition=%cond.1, body=%body.1
  %s = (f32[16], f32[8]) all-gather-start(%y), channel_id=1, dimensions={0}
  %r = (f32[], pred[3]) all-reduce(%a, %b), channel_id=2, to_apply=%add
  %q = (f32[8], f32[8]) all-reduce-start(%a, %b), channel_id=4, replica_groups=[4,2]<=[8]
  %p = (bf16[6,2]{1,0:T(8,128)(2,1)S(1)}, bf16[6,2]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}, u32[]) collective-permute-start(%a), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %d = f32[3] reduce-scatter(%a), channel_id=6, replica_groups=mesh['x'=2,'y'=4], device_ids=([2,4]T(1,0)) {'y'}, dimensions={0}
  %e = f32[4] all-to-all(%a), channel_id=7, replica_groups=mesh['x'=2,'y'=4] {'x','y':(1)2}
  %f = f32[16,2]{0,1:T(8,128)} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.clone.1
  ROOT %c = f32[8,4] copy(%w)
}
"""  # noqa: E501 - as XLA writes it


def test_collectives_are_found_in_hlo_text():
    every = collectives(HLO)
    found = {c.kind if c.times == 1 else f"{c.kind} in a loop": c for c in reversed(every)}
    loop, gather, one = (found[k] for k in ("all-gather in a loop", "all-gather", "all-reduce"))
    assert found["all-to-all in a loop"].times == 7
    assert (loop.kind, loop.times, loop.bytes, loop.group) == ("all-gather", 7, 8 * 4 * 2, 2)
    assert (gather.arrays, gather.group, gather.bytes_sent) == ((("f32", (8,)),), 8, 32 * 7 / 8)
    assert (one.bytes, one.bytes_sent) == (4 + 3, 7 * 2 * 7 / 8)
    (pair,) = (c for c in every if c.kind == "all-reduce" and c.group == 2)
    assert (pair.bytes, pair.bytes_sent) == (64, 64)
    assert (found["collective-permute"].bytes, found["collective-permute"].bytes_sent) == (24, 24)
    fused, scatter = (c for c in every if c.kind == "reduce-scatter")
    assert (scatter.bytes, scatter.group, scatter.bytes_sent) == (12, 4, 36)
    assert (fused.bytes, fused.group, fused.bytes_sent) == (4 * 16 * 2, 4, 4 * 16 * 2 * 3)
    swap = found["all-to-all"]
    assert (swap.bytes, swap.group, swap.bytes_sent) == (16, 4, 12)


# Each line is a notation of the same 12 devices, as hosts of 4 with 3 tasks; the first group.
GROUPS = [
    ("{{0,1,2,3},{4,5,6,7},{8,9,10,11}}", (0, 1, 2, 3)),
    ("[3,4]<=[12]", (0, 1, 2, 3)),
    ("[4,3]<=[3,4]T(1,0)", (0, 4, 8)),
    ("mesh['x'=3,'y'=4] {'y'}", (0, 1, 2, 3)),
    ("mesh['x'=3,'y'=4] {'x'}", (0, 4, 8)),
    ("mesh['x'=3,'y'=4] {'y':(1)2}", (0, 2)),
    ("mesh['x'=3,'y'=4] {'y':(2)2}", (0, 1)),
    ("mesh['x'=4,'y'=3], device_ids=([3,4]T(1,0)) {'x'}", (0, 1, 2, 3)),
    ("mesh['x'=4,'y'=3], device_ids=([3,4]T(1,0)) {'x':(1)2,'y'}", (0, 4, 8, 2, 6, 10)),
]


@pytest.mark.parametrize(("notation", "members"), GROUPS)
def test_the_first_group_of_devices_is_read(notation, members):
    (one,) = collectives(START.replace("GROUPS", notation))
    assert one.members == members


START = """HloModule jit_step, num_partitions=12

ENTRY %main (x: f32[4,128]) -> f32[4,512] {
  %start = (f32[4,128]{0,1}, f32[4,512]{0,1}) all-gather-start(%x), channel_id=2, replica_groups=GROUPS, dimensions={1}, use_global_device_ids=true, backend_config={"collective_backend_config":{"is_sync":false}}
  ROOT %all-gather-done = f32[4,512]{0,1} all-gather-done(%start), metadata={op_name="all-gather"}
}
"""  # noqa: E501 - as XLA writes it


@pytest.mark.parametrize(
    ("notation", "speed"),
    [
        ("[3,4]<=[12]", 450e9),  # within a host
        ("[4,3]<=[3,4]T(1,0)", 50e9),  # one device per host: an adapter each
        ("[2,6]<=[12]", 4 * 50e9),  # the four devices of the first host share their adapters
    ],
)
def test_communication_between_hosts_is_slower(notation, speed):
    found = collectives(START.replace("GROUPS", notation))
    hosts = [0] * 4 + [1] * 4 + [2] * 4
    sent = found[0].bytes_sent
    assert communication_seconds(GPUS["h100"].chip, found, hosts) == sent / speed
    assert communication_seconds(GPUS["h100"].chip, found, [0] * 12) == sent / 450e9
    assert communication_seconds(CHIPS["v5e"], found, hosts) == sent / 200e9
