"""The shipped model is small, needs no download, and predicts text better than xz."""

import jax
import pytest

from obscura_jax import load_model
from obscura_jax.cli.main import main
from obscura_jax.config import PRESETS
from obscura_jax.interop.checkpoint import read_checkpoint
from obscura_jax.nn.model import GPTModel
from obscura_jax.training.initial import gpt2_init
from tools.tiny_score import model_bits, xz_bits
from tools.tiny_text import documents, split


@pytest.fixture(scope="module")
def texts():
    return split(documents())


def test_the_shipped_model_is_small_and_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, params = load_model("tiny")
    assert model.cfg == PRESETS["tiny"]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    audit = read_checkpoint("tiny").audit
    assert audit
    (tmp_path / "tiny").mkdir()
    with pytest.raises(FileNotFoundError, match="tiny is not a model"):
        load_model("./tiny")
    from obscura_jax.interop import locate

    folder = locate._SHIPPED["tiny"]
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6


def test_generate_runs_the_shipped_model_by_default(capsys):
    main(["generate", "The for statement", "--max-new-tokens", "12", "--no-compile-cache"])
    said = capsys.readouterr().out
    main(["generate", "The for statement", "--max-new-tokens", "12", "--model", "tiny"])
    assert capsys.readouterr().out == said
    assert said.startswith("The for statement")
    assert said.isascii()  # as the documentation is; random tokens would not be


def test_no_paragraph_is_in_both_training_and_validation_text(texts):
    train, held_out = texts
    assert 0.02 < len(held_out) / len(train) < 0.05
    words = " ".join(train.split())
    paragraphs = [" ".join(p.split()) for p in held_out.split("\n\n") if p.strip()]
    assert len(paragraphs) > 200
    assert not [p for p in paragraphs if len(p) > 80 and p in words]
    assert " ".join(train.split("\n\n")[40].split()) in words


def test_the_shipped_model_needs_fewer_bits_than_xz(texts):
    train, held_out = texts
    model, params = load_model("tiny")
    part = held_out[:20000]  # a third, for speed; the model card has the figure for all of it
    ours, theirs = model_bits(model, params, part), xz_bits(train, part)
    assert 0.8 < ours < theirs < 3
    fresh = gpt2_init(model.cfg, jax.random.key(0))
    # An untrained model guesses evenly: 12 bits per token of about 3.5 bytes.
    assert model_bits(GPTModel(model.cfg), fresh, part[:2000]) > 3
