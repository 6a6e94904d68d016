"""Looks while a model is trained: one frame per look, on one page in the run's folder."""

import numpy as np
import pytest

from obscura_jax import load_model, train
from obscura_jax.cli.main import main
from obscura_jax.look import inside
from obscura_jax.look.assemble import embedded_data, look_page
from obscura_jax.look.page_data import unpack
from obscura_jax.runs import looks
from obscura_jax.runs.fit import Schedule
from obscura_jax.runs.looks import LookWriter
from obscura_jax.text.tokenizers import gpt2_tokenizer

pytestmark = pytest.mark.slow

SETTINGS = {
    "text": ["text.txt"], "vocab_size": 300, "context_length": 16, "emb_dim": 12, "n_heads": 2,
    "n_layers": 2, "steps": 5, "batch_size": 2, "learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("The cat sat on the mat. " * 40)


def frames_of(folder):
    return embedded_data((folder / "look.html").read_text())["models"][0]["frames"]


def test_a_run_has_a_frame_per_look(tmp_path):
    folder = tmp_path / "run"
    train(SETTINGS, folder, schedule=Schedule(look_every=2))
    data = embedded_data((folder / "look.html").read_text())
    (entry,) = data["models"]
    assert entry["name"] == "run"
    assert [frame["step"] for frame in entry["frames"]] == [0, 2, 4, 5]
    # The last frame is the model that the run saved.
    model, params = load_model(folder / "model")
    found = inside(model, params, [token["id"] for token in data["tokens"]], ablate=False)
    first, *_, last = (unpack(frame["logprob"]) for frame in entry["frames"])
    assert np.abs(last - found.prediction.target_logprob).max() == 0
    assert np.abs(first - found.prediction.target_logprob).max() > 0.01
    assert entry["logprob"] == entry["frames"][-1]["logprob"]


def test_a_resumed_run_continues_the_frames(tmp_path):
    folder = tmp_path / "run"
    schedule = Schedule(look_every=1, max_seconds=1e-9)  # stops after the first step
    train(SETTINGS, folder, schedule=schedule)
    before = frames_of(folder)
    assert [frame["step"] for frame in before] == [0, 1]
    train({}, folder, resume=True, schedule=Schedule(look_every=2))
    after = frames_of(folder)
    assert [frame["step"] for frame in after] == [0, 1, 2, 4, 5]
    assert after[:2] == before


def test_no_look_is_taken_unless_asked(tmp_path):
    train(SETTINGS, tmp_path / "run")
    assert not (tmp_path / "run" / "look.html").exists()


def writer(path, said):
    model, params = load_model("tiny")
    return LookWriter(path, model, [3, 4], gpt2_tokenizer(4096), said.append), params


def test_frames_are_thinned_out(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "_MOST_FRAMES", 4)
    add, params = writer(tmp_path / "look.html", said := [])
    for step in range(7):
        add.add(step, params)
    assert [frame["step"] for frame in frames_of(tmp_path)] == [0, 4, 6]
    add.add(5, params)  # as after a return to a checkpoint
    assert [frame["step"] for frame in frames_of(tmp_path)] == [0, 4, 5]
    assert not said


def test_frames_of_another_text_or_version_are_dropped(tmp_path):
    path = tmp_path / "look.html"
    add, params = writer(path, said := [])
    add.add(0, params)
    data = embedded_data(path.read_text())
    path.write_text(look_page({**data, "version": 0}))
    add.add(1, params)
    assert [frame["step"] for frame in frames_of(tmp_path)] == [1]
    other = LookWriter(path, add.model, [5], add.tokenizer, add.warn)
    other.add(2, params)
    assert [frame["step"] for frame in frames_of(tmp_path)] == [2]
    assert not said


def test_a_failed_look_does_not_end_the_run(tmp_path):
    path = tmp_path / "look.html"
    path.write_text("mine")
    add, params = writer(path, said := [])
    add.add(0, params)
    assert said == ["no look inside the model: this is not a page of obscura look"]
    assert path.read_text() == "mine"


def test_a_mesh_is_refused(tmp_path, capsys):
    words = ["train", "--text", "text.txt", "--out", "run", "--look-every", "2", "--mesh", "data=1"]
    with pytest.raises(SystemExit):
        main(words)
    assert "--look-every needs a run on one device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
