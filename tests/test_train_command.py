"""`obscura train`: from a text file to a model that `obscura generate` runs."""

import io
import json
import math
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from obscura_jax import GPTConfig, gpt2_tokenizer, load_model
from obscura_jax.cli.main import main
from obscura_jax.interop.course_state import parameter_shapes
from obscura_jax.nn.model import GPTModel
from obscura_jax.runs.fit import read_metrics
from obscura_jax.text import sample_text
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.text.loader import DataLoader
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loop import train
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import init_train_state, train_step_jit
from tests.support.models import leaves

SMALL = ["--emb-dim", "8", "--n-heads", "2", "--n-layers", "1", "--context-length", "16"]
CFG = GPTConfig(
    vocab_size=53,
    context_length=7,
    emb_dim=8,
    n_heads=2,
    n_layers=3,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(sample_text(), encoding="utf-8")
    return str(path)


def call(*words):
    main(["train", *map(str, words)])


@pytest.mark.slow
def test_a_text_becomes_a_model(text, tmp_path, capsys):
    out = tmp_path / "run"
    call("--text", text, "--out", out, "--steps", 12, "--validate-every", 6, "--lr", 0.01, *SMALL)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(12))
    assert all({"tokens_per_second", "lr"} <= row.keys() for row in steps)
    assert abs(steps[0]["loss"] - math.log(50257)) < 0.2
    assert steps[-1]["loss"] < steps[0]["loss"] - 0.2
    assert [row["step"] for row in rows if "val_loss" in row] == [5, 11]
    capsys.readouterr()
    main(["generate", "--model", str(out / "model"), "The", "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith("The")
    model, _ = load_model(out / "model")
    assert model.cfg.emb_dim == 8


@pytest.mark.slow
def test_the_same_text_from_standard_input_gives_the_same_losses(tmp_path, monkeypatch):
    losses = []
    for name in "ab":
        data = io.BytesIO(sample_text().encode())
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=data))
        call("--out", tmp_path / name, "--steps", 3, "--drop-rate", 0.1, *SMALL)
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([row.get("loss", row.get("val_loss")) for row in rows])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 4


@pytest.mark.slow
def test_nanogpt_token_files_are_read(tmp_path, capsys):
    """Unchanged: 16-bit GPT-2 tokens in train.bin and val.bin."""
    ids = np.array(gpt2_tokenizer().encode(sample_text()), np.uint16)
    ids[:-80].tofile(tmp_path / "train.bin")
    ids[-80:].tofile(tmp_path / "val.bin")
    words = ["--data", tmp_path, "--batch-size", 4, "--epochs", 2, *SMALL]
    call("--out", tmp_path / "run", *words)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    passes = 2 * ((len(ids) - 81) // 16 // 4)
    assert [row["step"] for row in rows if "loss" in row] == list(range(passes))
    assert isinstance(rows[-1]["sample"], str)
    padded = ["--vocab-size", 50304, "--steps", 1]
    call("--data", tmp_path, "--out", tmp_path / "padded", *padded, *SMALL)
    assert load_model(tmp_path / "padded" / "model")[0].cfg.vocab_size == 50304
    refused(
        capsys,
        "outside the vocabulary, 0..299",
        "--out",
        tmp_path / "b",
        "--vocab-size",
        300,
        *words[:-8],
        *SMALL,
    )
    (tmp_path / "val.bin").unlink()
    refused(capsys, "no tokens at", "--out", tmp_path / "b", *words)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_padded_vocabulary_is_trained_on_text(text, tmp_path):
    """The sample shows U+FFFD for ids beyond GPT-2's, which are most of this vocabulary."""
    out = tmp_path / "run"
    call("--text", text, "--out", out, "--vocab-size", 500_000, "--steps", 1, *SMALL)
    ids = np.fromfile(out / "tokens.bin", np.uint16).tolist()
    assert ids == [*gpt2_tokenizer().encode(sample_text()), 50256]
    (row,) = [row for row in read_metrics(out / "metrics.jsonl") if "val_loss" in row]
    assert row["sample"].count("\ufffd") > 10  # of 15 sampled ids
    assert load_model(out / "model")[0].cfg.vocab_size == 500_000


@pytest.mark.slow
def test_a_vocabulary_too_small_for_text_can_be_trained_on_token_ids(text, tmp_path, capsys):
    message = "at least 257 tokens, got 65; raise --vocab-size, or pass files of token ids with --d"
    words = ["--out", tmp_path / "run", "--vocab-size", 65, "--steps", 2, *SMALL]
    refused(capsys, message, "--text", text, *words)
    assert not (tmp_path / "run").exists()
    for name in ("train.bin", "val.bin"):
        np.random.default_rng(0).integers(0, 65, 99).astype(np.uint16).tofile(tmp_path / name)
    call("--data", tmp_path, *words)
    (row,) = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    assert "sample" not in row  # the ids have no known text


@pytest.mark.slow
def test_a_context_of_one_token_trains_without_a_sample(text, tmp_path):
    words = [*SMALL[:-1], 1, "--vocab-size", 300, "--steps", 2]
    call("--text", text, "--out", tmp_path / "run", *words)
    (row,) = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val_loss" in row]
    assert "sample" not in row
    assert load_model(tmp_path / "run" / "model")[0].cfg.context_length == 1


@pytest.mark.slow
def test_errors_in_samples_and_plots_do_not_end_a_run(text, tmp_path, monkeypatch, capsys):
    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr("obscura_jax.runs.samples.generate", fail)
    monkeypatch.setattr("obscura_jax.runs.launch.loss_curves", fail)
    call("--text", text, "--out", tmp_path / "run", "--vocab-size", 300, "--steps", 2, *SMALL)
    error = capsys.readouterr().err
    assert (
        error == "obscura train: no sample of text: no room\nobscura train: no loss.png: no room\n"
    )
    assert load_model(tmp_path / "run" / "model")[0].cfg.vocab_size == 300


@pytest.mark.slow
def test_jax_settings_do_not_change_losses(text, tmp_path):
    words = ["--text", text, "--vocab-size", 300, "--steps", 4, "--drop-rate", 0.1, *SMALL]

    def rows(name, *more):
        call(*words, "--out", tmp_path / name, *more)
        return [
            {n: x for n, x in row.items() if n != "tokens_per_second"}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]

    plain, short = rows("plain"), rows("short", "--dtype", "bfloat16")
    with jax.default_prng_impl("rbg"):
        assert rows("rbg") == plain
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        wide = rows("wide") + rows("wide short", "--dtype", "bfloat16")
    for ours, theirs in zip(wide, plain + short, strict=True):
        assert ours.get("sample") == theirs.get("sample")
        for name in ours.keys() - {"sample"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)  # 1.2e-7 measured
    assert rows("other", "--seed", 1) != plain


def test_a_damaged_journal_is_reported_with_a_remedy(text, tmp_path, capsys):
    out = tmp_path / "run"
    call("--text", text, "--out", out, "--vocab-size", 300, "--steps", 2, *SMALL)
    tokens = (out / "tokens.bin").read_bytes()
    (out / "tokens.bin.json").write_text("{}")
    capsys.readouterr()
    message = f"{out}/tokens.bin.json is damaged; delete {out}/tokens.bin.json and {out}/tokens.bin"
    refused(capsys, message, "--out", out, "--resume")
    (out / "tokens.bin.json").unlink()
    (out / "tokens.bin").unlink()
    call("--out", out, "--resume")
    assert (out / "tokens.bin").read_bytes() == tokens


def test_a_diverged_run_keeps_the_last_good_state(text, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--text", text, "--out", out, "--steps", 40, "--lr", 1e30, "--warmup-steps", 1]
    refused(
        capsys, "with a lower learning rate (--learning-rate)", *words, "--vocab-size", 300, *SMALL
    )
    rows = read_metrics(out / "metrics.jsonl")
    kept = [int(path.name) for path in (out / "checkpoints").iterdir()]
    assert kept == [rows[-1]["step"] + 1]  # the state after the last step that was finite
    assert all(math.isfinite(row["loss"]) for row in rows)
    refused(capsys, f"training diverged at step {kept[0]} (loss nan", "--out", out, "--resume")
    assert not (out / "model").exists()


@pytest.mark.slow
def test_a_nonfinite_step_keeps_the_state(x64):
    config = OptimizerConfig()
    model, ids = GPTModel(CFG), np.arange(16, dtype=np.int32).reshape(1, 2, 8)
    params = gpt2_init(CFG, jax.random.key(0))
    broken = jax.tree.map(lambda leaf: leaf.at[0].set(np.nan), params)
    for start, moved in ((params, True), (broken, False)):
        state, report = train_step_jit(
            model, config, init_train_state(config, start), ids[..., :-1], ids[..., 1:]
        )
        same = jax.tree.map(partial(np.array_equal, equal_nan=True), state.params, start)
        assert all(jax.tree.leaves(same)) is not moved
        assert int(state.step) == moved
        assert bool(np.isfinite(report.loss)) is moved


@pytest.mark.slow
def test_micro_batches_equal_the_batch():
    """Gradient accumulation: the same losses, but for rounding."""
    ids = np.random.default_rng(0).integers(0, 53, 400).astype(np.int32)
    loader = DataLoader(GPTDatasetV1.from_ids(ids, 7, 7), 6)
    model, config = GPTModel(replace(CFG, drop_rate=0.0)), OptimizerConfig(clip_norm=1.0)

    def losses(grad_accum_steps, steps=5):
        state = init_train_state(config, gpt2_init(CFG, jax.random.key(0)))
        options = StepOptions(grad_accum_steps=grad_accum_steps)
        run = TrainRun(model, config, loader, steps, options=options)
        return [row["loss"] for _, row in train(run, state)]

    difference = np.abs(np.subtract(losses(1), losses(3))).max()
    assert difference < 4 * 1.2e-6  # measured: at most 1.2e-6 over 8 seeds
    assert np.abs(np.subtract(losses(1)[1:], losses(3)[:-1])).max() > 1e-3
    assert len(losses(2, steps=20)) == 20  # beyond a pass of 9 batches
    with pytest.raises(ValueError, match="6 windows does not split into 4"):
        losses(4)


@pytest.mark.slow
def test_a_nonfinite_loss_ends_the_run():
    ids = np.random.default_rng(0).integers(0, 53, 400).astype(np.int32)
    loader = DataLoader(GPTDatasetV1.from_ids(ids, 7, 7), 6)
    config = OptimizerConfig(learning_rate=1e30)
    state = init_train_state(config, gpt2_init(CFG, jax.random.key(0)))
    run = TrainRun(GPTModel(CFG), config, loader, 20)
    with pytest.raises(ValueError, match=r"training diverged at step \d+ \(loss"):
        list(train(run, state))


def test_gpt2_parameters():
    cfg = replace(CFG, emb_dim=64, n_heads=4)
    tree = gpt2_init(cfg, jax.random.key(1))
    found = leaves(tree)
    assert {name: x.shape for name, x in found.items()} == parameter_shapes(cfg)
    assert float(found["trf_blocks.1.att.W_key.weight"].std()) == pytest.approx(0.02, rel=0.05)
    ends = found["trf_blocks.1.ff.layers.2.weight"]
    assert float(ends.std()) == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert (found["final_norm.scale"] == 1).all()
    assert not found["trf_blocks.0.att.W_query.bias"].any()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no text at"),
        (b"", "is empty"),
        (b"\n", "the text has 2 tokens"),
        (b"good \xff bad", "is not UTF-8 text: byte 5 is 0xff"),
        (b"ab\0cd", "is not UTF-8 text: byte 2 is 0x00"),
        (b"too short", "the text has 3 tokens"),
    ],
)
def test_bad_texts_are_refused(tmp_path, capsys, data, message):
    path = tmp_path / "text.txt"
    if data is not None:
        path.write_bytes(data)
    refused(capsys, message, "--text", path, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_bad_settings_are_refused(text, tmp_path, capsys):
    out = ["--text", text, "--out", tmp_path / "run", *SMALL]
    refused(capsys, "learning_rate must be a number above 0, got 0.0", *out, "--learning-rate", 0)
    refused(capsys, "learning_rate must be a number above 0, got nan", *out, "--lr", "nan")
    refused(capsys, "does not split into 3", *out, "--batch-size", 4, "--grad-accum-steps", 3)
    refused(capsys, "emb_dim=8 is not divisible", *out, "--n-heads", 3)
    message = "preset gpt2 has emb_dim=768, not 8; leave one of them out"
    refused(capsys, message, *out, "--preset", "gpt2")
    message = "val_fraction must be a number in (0, 1), got 1.0"
    refused(capsys, message, *out, "--val-fraction", 1.0)
    message = "text and data cannot both be given; leave one of them out"
    refused(capsys, message, *out, "--data", tmp_path)
    assert not (tmp_path / "run").exists()


def test_existing_files_are_not_overwritten(text, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("mine")
    refused(
        capsys,
        "is not empty (metrics.jsonl); choose a new or empty folder",
        "--text",
        text,
        "--out",
        tmp_path,
        *SMALL,
    )
    assert (tmp_path / "metrics.jsonl").read_text() == "mine"
    refused(capsys, "is not a folder", "--text", text, "--out", text, *SMALL)


def refused(capsys, message, *words):
    with pytest.raises(SystemExit) as stop:
        call(*words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
