"""The shipped model is small, needs no download, and predicts its text better than xz."""

import re
import sys
from pathlib import Path

import jax
import pytest

from obscura_jax import load_model
from obscura_jax.cli.main import main
from obscura_jax.config import PRESETS
from obscura_jax.interop.checkpoint import read_checkpoint, save_model
from obscura_jax.training.initial import gpt2_init
from tests.support import processes

TOOLS = Path(__file__).parents[1] / "tools"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Return the texts that tools/tiny_text.py writes: training and held out."""
    folder = tmp_path_factory.mktemp("texts")
    ran = processes.run(sys.executable, TOOLS / "tiny_text.py", folder)
    assert ran.returncode == 0, ran.stderr
    return [(folder / name).read_text() for name in ("train.txt", "held_out.txt")]


def scores(model, folder, train, held_out):
    """Return the bits per byte that tools/tiny_score.py prints: of the model, and of xz."""
    folder.mkdir()
    (folder / "train.txt").write_text(train)
    (folder / "held_out.txt").write_text(held_out)
    ran = processes.run(sys.executable, TOOLS / "tiny_score.py", model, folder)
    assert ran.returncode == 0, ran.stderr
    return [float(bits) for bits in re.findall(r"([\d.]+) bits per byte", ran.stdout)]


def test_the_shipped_model_is_small_and_named(tmp_path, monkeypatch):
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


def test_generate_uses_the_shipped_model_by_default(capsys):
    main(["generate", "The for statement", "--max-new-tokens", "12", "--no-compile-cache"])
    said = capsys.readouterr().out
    main(["generate", "The for statement", "--max-new-tokens", "12", "--model", "tiny"])
    assert capsys.readouterr().out == said
    assert said.startswith("The for statement")
    assert said.isascii()  # as the documentation is; random tokens would not be


@pytest.mark.slow
def test_no_paragraph_is_in_both_parts(texts):
    train, held_out = texts
    assert 0.02 < len(held_out) / len(train) < 0.05
    words = " ".join(train.split())
    paragraphs = [" ".join(p.split()) for p in held_out.split("\n\n") if p.strip()]
    assert len(paragraphs) > 200
    assert not [p for p in paragraphs if len(p) > 80 and p in words]
    assert " ".join(train.split("\n\n")[40].split()) in words


@pytest.mark.slow
def test_the_shipped_model_needs_fewer_bits_than_xz(texts, tmp_path):
    train, held_out = texts
    part = held_out[:20000]  # a third, to save time; the model card has the score of all of it
    ours, theirs = scores("tiny", tmp_path / "texts", train, part)
    assert 0.8 < ours < theirs < 3
    cfg = PRESETS["tiny"]
    save_model(tmp_path / "fresh", cfg, gpt2_init(cfg, jax.random.key(0)))
    # Without training it guesses evenly: 12 bits per token of about 3.5 bytes.
    untrained, _ = scores(tmp_path / "fresh", tmp_path / "short", train[:2000], part[:2000])
    assert untrained > 3
