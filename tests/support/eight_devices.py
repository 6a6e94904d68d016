"""Tests that `tests/test_mesh.py` runs in processes with eight CPU devices."""

import json
import math
from dataclasses import replace
from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel, create_dataloader_v1, generate
from obscura_jax.cli.main import main
from obscura_jax.decoding.request import plan_generation
from obscura_jax.nn.scan import stack_blocks
from obscura_jax.safetensors_files import read_safetensors
from obscura_jax.scale.collectives import collectives
from obscura_jax.scale.generation import mesh_programs
from obscura_jax.scale.mesh import (
    abstract_params,
    make_mesh,
    pad_vocab,
    parse_mesh,
    place,
    unpad_vocab,
)
from obscura_jax.scale.placement import MeshPlacement
from obscura_jax.text import sample_text
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.text.loader import DataLoader
from obscura_jax.text.tokenizers import tokenizer_for
from obscura_jax.training.checkpoint import CheckpointManager
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loop import train
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.placement import SINGLE_DEVICE, SingleDevice
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import init_train_state

V, C, D, H, N = 509, 16, 32, 4, 2  # a prime vocabulary, as 50257 has no small divisor
CFG = GPTConfig(
    vocab_size=V,
    context_length=C,
    emb_dim=D,
    n_heads=H,
    n_layers=N,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)
LAYOUTS = ["data=8", "fsdp=8", "data=2,model=4", "data=2,fsdp=2,model=2"]
OPTIMIZER = OptimizerConfig(
    learning_rate=3e-3, warmup_steps=3, clip_norm=1.0, weight_decay=0.1, decay_1d_params=False
)
STEPS = 20


def first(cfg):
    return init_train_state(OPTIMIZER, gpt2_init(cfg, jax.random.key(0)))


def run(placement, cfg=CFG, seed=0, grad_accum_steps=1):
    """Return the losses of 20 steps, and the full state after them."""
    loader = create_dataloader_v1(
        sample_text(), 8, max_length=C, stride=C, seed=seed, tokenizer=tokenizer_for(V)
    )
    start = placement.place(first(cfg))
    losses = []
    options = StepOptions(grad_accum_steps=grad_accum_steps)
    train_run = TrainRun(GPTModel(cfg), OPTIMIZER, loader, STEPS, seed=7, options=options)
    for state, row in train(train_run, start, placement):  # noqa: B007 - the last one is returned
        losses.append(row["loss"])
    return np.array(losses), placement.gather(state)


@cache
def alone(tie_weights, drop_rate=0.0):
    return run(SINGLE_DEVICE, replace(CFG, tie_weights=tie_weights, drop_rate=drop_rate))


def test_eight_devices_exist():
    assert jax.device_count() == 8


@pytest.mark.parametrize(
    ("layout", "tie_weights"), [*((layout, True) for layout in LAYOUTS), (LAYOUTS[-1], False)]
)
def test_losses_are_the_same_in_each_layout(layout, tie_weights):
    cfg = replace(CFG, tie_weights=tie_weights)
    placement = MeshPlacement(mesh=make_mesh(parse_mesh(layout)), cfg=cfg, scan=tie_weights)
    losses, state = run(placement, cfg, grad_accum_steps=1)
    want, whole = alone(tie_weights)
    assert np.abs(losses / want - 1).max() < 1e-5  # 2.6e-07 measured
    assert placement.train_step_jit._cache_size() == 1  # the state keeps its layout
    assert jax.tree.structure(state) == jax.tree.structure(whole)
    for got, expected in zip(jax.tree.leaves(state), jax.tree.leaves(whole), strict=True):
        assert got.shape == expected.shape
    for got, expected in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(whole.params), strict=True
    ):
        assert np.abs(got - expected).max() < 1e-3  # 1e-4 measured: AdamW divides tiny by tiny


def test_another_batch_order_changes_the_losses():
    losses, _ = run(SINGLE_DEVICE, seed=1)
    assert np.abs(losses / alone(True)[0] - 1).max() > 1e-3


def test_accumulation_and_dropout_are_the_same_over_a_mesh():
    """Dropout masks equal those of one device, unrolled and with --scan."""
    cfg = replace(CFG, drop_rate=0.1)
    mesh = make_mesh(parse_mesh("data=2,fsdp=2,model=2"))
    want, _ = run(SINGLE_DEVICE, cfg, grad_accum_steps=2)
    for scan in (False, True):
        losses, _ = run(MeshPlacement(mesh=mesh, cfg=cfg, scan=scan), cfg, grad_accum_steps=2)
        assert np.abs(losses / want - 1).max() < 1e-5  # 1.7e-07 measured
    assert np.abs(losses / alone(True)[0] - 1).max() > 1e-4


# Checkpoints.


def training(cfg=CFG):
    ids = np.arange(C * 8 + 1, dtype=np.int32) % V
    return TrainRun(GPTModel(cfg), OPTIMIZER, DataLoader(GPTDatasetV1.from_ids(ids, C, C), 8), 9)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_checkpoint_is_restored_on_every_layout(layout, scan, tmp_path):
    """A state goes from a mesh to one device and to another mesh, bit for bit."""
    placements = [
        MeshPlacement(make_mesh(parse_mesh(layout)), CFG, scan=scan),
        SINGLE_DEVICE,
        MeshPlacement(make_mesh({"model": 2, "fsdp": 4}), CFG, scan=not scan),
        SingleDevice(scan=True),
    ]
    want = jax.device_get(replace(first(CFG), step=jnp.asarray(1, jnp.int32)))
    state = placements[0].place(want)
    for number, (saving, restoring) in enumerate(pairwise(placements)):
        CheckpointManager(tmp_path / str(number), training(), saving).save(state)
        state = CheckpointManager(tmp_path / str(number), training(), restoring).restore()
        jax.tree.map(np.testing.assert_array_equal, restoring.gather(state), want)
        assert jax.tree.map(sharded, state) == jax.tree.map(sharded, restoring.place(want))


def sharded(array):
    return array.shape, array.sharding, array.dtype


def test_a_checkpoint_stores_every_element_once(tmp_path):
    """Also elements that are replicated over a mesh axis, or padded."""
    placement = MeshPlacement(make_mesh(parse_mesh(LAYOUTS[-1])), CFG, scan=True)
    CheckpointManager(tmp_path, training(), placement).save(placement.place(first(CFG)))
    parts = read_safetensors(tmp_path / "0" / "process-0.safetensors")
    assert sum(x.size for x in parts.values()) == sum(x.size for x in jax.tree.leaves(first(CFG)))
    assert parts["params.tok_emb.weight@255,16"].shape == (V - 255, D // 2)


# Collectives.


UNTIED = replace(CFG, tie_weights=False)  # a tied table's gradient is summed in two parts


def step_program(layout, scan=False):
    placement = MeshPlacement(mesh=make_mesh(parse_mesh(layout)), cfg=UNTIED, scan=scan)
    state = placement.abstract(jax.eval_shape(lambda: first(UNTIED)))
    batch = jax.ShapeDtypeStruct((1, 8, C), jnp.int32, sharding=placement.batch_sharding)
    lowered = placement.train_step_jit.lower(GPTModel(UNTIED), OPTIMIZER, state, batch, batch)
    return collectives(lowered.compile().as_text())


def parameters():
    """Return the shape of each parameter, for every block."""
    shapes = jax.eval_shape(lambda: gpt2_init(UNTIED, jax.random.key(0)))
    return [leaf.shape for leaf in jax.tree.leaves(shapes)]


def arrays(found, kind):
    return [array for c in found if c.kind == kind for array in c.arrays * c.times]


def size(found, kind):
    return sum(c.bytes * c.times for c in found if c.kind == kind)


@pytest.mark.parametrize("scan", [False, True])
def test_data_parallel_only_sums_gradients(scan):
    found = step_program("data=8", scan)
    assert {c.kind for c in found} == {"all-reduce"}
    gradients = 4 * sum(map(math.prod, parameters()))
    assert gradients <= size(found, "all-reduce") <= gradients + 64  # and the loss


@pytest.mark.parametrize("scan", [False, True])
def test_fully_sharded_gathers_each_parameter_before_its_use(scan):
    found = step_program("fsdp=8", scan)
    gathered = sorted(shape[-2:] for _, shape in arrays(found, "all-gather"))
    matrices = [shape for shape in parameters() if len(shape) == 2]
    of_blocks = [shape for shape in matrices if shape[0] not in (V, C)]
    assert gathered == sorted(matrices + of_blocks * scan)  # the loop gathers for its gradient too
    gradients = 4 * sum(map(math.prod, parameters()))
    summed = size(found, "all-reduce")
    assert gradients <= summed <= gradients + 512  # and the loss, and the gradient norm
    assert {c.kind for c in found} == {"all-gather", "all-reduce"}


def test_tensor_parallel_sends_activations_only():
    found = step_program("data=2,model=4")
    assert {c.kind for c in found} == {"all-reduce"}  # nothing is gathered
    rows = 8 // 2 * C
    summed = [shape for _, shape in arrays(found, "all-reduce")]
    # Forward: two sums per block, and one for the embedding. Backward: one each for the inputs of
    # queries, keys, values, feed-forward layers and head.
    activations = [shape for shape in summed if math.prod(shape) == rows * D]
    assert len(activations) == (2 + 4) * N + 2
    logits = [shape for shape in summed if math.prod(shape) >= rows * V // 4]
    assert not logits


def test_a_necessary_all_gather_is_found():
    """An array that is split, but needed unsplit, must be gathered."""
    mesh = make_mesh({"model": 8})
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    x = jax.ShapeDtypeStruct((16, 24), jnp.float32, sharding=split)
    text = jax.jit(lambda x: x + 1, out_shardings=whole).lower(x).compile().as_text()
    (found,) = collectives(text)
    assert (found.kind, found.arrays, found.bytes) == ("all-gather", (("f32", (16, 24)),), 1536)


# Memory.


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_device_stores_the_calculated_bytes(layout, scan):
    sizes = {"data": 1, "fsdp": 1, "model": 1} | parse_mesh(layout)
    f, m = sizes["fsdp"], sizes["model"]
    vocabulary = -(-V // m) * m
    split = vocabulary * D + N * 12 * D * D  # tables and matrices, over both axes
    over_model = N * (3 * D + 4 * D)  # biases of what model splits
    whole = N * (2 * D + 4 * D) + 2 * D  # biases of the residual stream, norms
    parameters = split // (f * m) + C * D // f + over_model // m + whole
    placement = MeshPlacement(mesh=make_mesh(sizes), cfg=CFG, scan=scan)
    state = placement.place(first(CFG))
    counts = jax.tree.leaves((state.step, state.opt_state))
    counters = sum(leaf.nbytes for leaf in counts if leaf.ndim == 0)
    for device in jax.devices():
        there = sum(
            shard.data.nbytes
            for leaf in jax.tree.leaves(state)
            for shard in leaf.addressable_shards
            if shard.device == device
        )
        assert there == 3 * 4 * parameters + counters  # weights and AdamW's two moments
    shapes = jax.eval_shape(lambda: first(CFG))
    shapes = pad_vocab(placement.mesh, stack_blocks(shapes) if scan else shapes)
    calculated = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(abstract_params(placement.mesh, shapes))
    )
    assert calculated == 3 * 4 * parameters + counters


def test_padding_is_zero_and_is_removed():
    mesh = make_mesh({"model": 4, "data": 2})
    params = gpt2_init(CFG, jax.random.key(0))
    placed = place(mesh, params)
    assert placed["tok_emb"]["weight"].shape == (512, D)
    assert not np.asarray(placed["tok_emb"]["weight"])[V:].any()
    back = unpad_vocab(CFG, placed)
    jax.tree.map(np.testing.assert_array_equal, back, params)


# Generation.


PROMPTS = [[1, 2, 3], [4, 5], [6] * 7, [8, 9, 10, 11], [500], [12, 13], [3, 1, 4, 1, 5], [9]]


@pytest.mark.parametrize(
    ("layout", "tie_weights"), [*((layout, True) for layout in LAYOUTS), ("data=2,model=4", False)]
)
def test_tokens_are_the_same_in_each_layout(layout, tie_weights):
    model = GPTModel(replace(CFG, tie_weights=tie_weights))
    params = gpt2_init(model.cfg, jax.random.key(3))
    params = jax.tree.map(lambda leaf: leaf * 5, params)  # far from ties
    mesh = make_mesh(parse_mesh(layout))
    placed, over = place(mesh, params), mesh_programs(mesh)
    keys = jax.random.split(jax.random.key(5), 8)
    how = {"temperature": [0.0, 1.0] * 4, "top_k": 20, "top_p": 0.9, "key": keys}
    controlled = {"repetition_penalty": [1.5, 1.0] * 4, "presence_penalty": 0.5}
    controlled |= {"logit_bias": {7: 2.0, 500: -3.0}, "banned_ids": [6], "frequency_penalty": 0.2}
    for settings in ({}, how, controlled):
        want = generate(model, params, PROMPTS, 9, **jax.tree.map(lambda x: x, settings))
        got = generate(model, placed, PROMPTS, 9, **settings, programs=over)
        assert got.tokens == want.tokens
        for ours, theirs in zip(got.logprobs, want.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert over.n_compilations() == 2  # one of each kind, for all settings
    if layout == LAYOUTS[-1]:
        slid = generate(model, placed, PROMPTS, C + 3, sliding_window=True, programs=over).tokens
        assert slid == generate(model, params, PROMPTS, C + 3, sliding_window=True).tokens


def test_the_cache_is_split_and_logits_are_not_gathered():
    model = GPTModel(CFG)
    params = gpt2_init(CFG, jax.random.key(0))
    mesh = make_mesh({"data": 2, "model": 4})
    placed, over = place(mesh, params), mesh_programs(mesh)
    plan = plan_generation(CFG, PROMPTS, 8)
    state = over.prefill(model, placed, plan.request, plan.prompts, 16, 16)
    assert state.cache.keys[0].shape == (8, H, 16, D // H)
    assert state.cache.keys[0].addressable_shards[0].data.shape == (4, 1, 16, D // H)
    decode = over.decode.trace(model, placed, plan.request, state, jnp.asarray(8)).lower()
    prefill = over.prefill.lower(model, placed, plan.request, plan.prompts, 16, 16)
    for lowered, positions in ((decode, 1), (prefill, plan.prompts.shape[1])):
        found = collectives(lowered.compile().as_text())
        assert {c.kind for c in found} == {"all-reduce"}
        largest = max(math.prod(shape) for c in found for _, shape in c.arrays)
        assert largest == 8 // 2 * positions * D


# Bad input, and the command line.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data=4", "data=4 needs 4 devices, but there are 8"),
        ("model=8", "model=8 does not divide n_heads=4; choose from 1, 2, 4"),
        ("fsdp=4,data=2,data=1", "invalid mesh .*as in data=4,model=2"),
        ("data=0", "invalid mesh 'data=0'"),
        ("rows=8", "invalid mesh 'rows=8'"),
        ("", "invalid mesh ''"),
    ],
)
def test_invalid_meshes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        MeshPlacement(mesh=make_mesh(parse_mesh(text)), cfg=CFG)


def test_indivisible_widths_and_batches_are_refused():
    with pytest.raises(ValueError, match="emb_dim=36; choose from 1, 2, 3, 4, 6"):
        MeshPlacement(mesh=make_mesh({"fsdp": 8}), cfg=replace(CFG, emb_dim=36))
    mesh = make_mesh({"data": 4, "fsdp": 2})
    params = place(mesh, gpt2_init(CFG, jax.random.key(0)))
    with pytest.raises(ValueError, match="does not divide a batch of 3; use a multiple of 8"):
        generate(GPTModel(CFG), params, PROMPTS[:3], 2, programs=mesh_programs(mesh))


def call(capsys, *words):
    main([*map(str, words)])
    return capsys.readouterr().out


def test_commands_run_over_a_mesh(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    sizes = ["--vocab-size", 300, "--emb-dim", 16, "--n-heads", 4, "--n-layers", 2]
    how = [*sizes, "--context-length", 16, "--batch-size", 8, "--steps", 4, "--lr", 0.01]
    losses = []
    for name, more in (("one", []), ("mesh", ["--mesh", "data=4,model=2", "--scan"])):
        call(capsys, "train", "--text", text, "--out", tmp_path / name, *how, *more)
        rows = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        losses.append([row.get("loss", row.get("val_loss")) for row in map(json.loads, rows)])
    np.testing.assert_allclose(*losses, rtol=1e-5)
    call(capsys, "train", "--out", tmp_path / "mesh", "--resume")  # on one device; no step is left
    words = ["generate", "--model", tmp_path / "one" / "model", "a", "b", "--max-new-tokens", 5]
    words += ["--no-compile-cache"]
    assert call(capsys, *words) == call(capsys, *words, "--mesh", "data=2,model=4")
    for bad, message in (
        (["--mesh", "data=8"], "does not divide a batch of 2"),
        (["--mesh", "data=3"], "needs 3 devices, but there are 8 (cpu)"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words), *bad])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1


def test_scan_on_one_device_is_the_same_training():
    for tie_weights in (True, False):
        cfg = replace(CFG, tie_weights=tie_weights)
        losses, state = run(SingleDevice(scan=True), cfg)
        want, whole = alone(tie_weights)
        assert np.abs(losses / want - 1).max() < 1e-6  # 1.3e-07 measured
        assert jax.tree.structure(state) == jax.tree.structure(whole)
