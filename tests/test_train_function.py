"""`obscura_jax.train`: a resumable run in a folder, from Python."""

import json
import math
import warnings

import numpy as np
import pytest

import obscura_jax
from obscura_jax import TrainSettings, load_model
from obscura_jax.runs.fit import Schedule, read_metrics
from obscura_jax.text import sample_text
from tests.test_train_settings import EARLIER

SMALL = {"vocab_size": 300, "emb_dim": 8, "n_heads": 2, "n_layers": 1, "context_length": 16}
AT_ONCE = Schedule(max_seconds=1e-9)  # ends after one step


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(sample_text(), encoding="utf-8")
    return path


def losses(rows):
    return [row.get("loss", row.get("val_loss")) for row in rows]


def weights(folder):
    return (folder / "model" / "model.safetensors").read_bytes()


def test_training_writes_a_model_and_returns_it(text, tmp_path):
    seen = []
    settings = TrainSettings(text=[text], steps=4, **SMALL)
    result = obscura_jax.train(settings, tmp_path / "run", on_metrics=seen.append)
    assert result.steps == 4
    assert not result.stopped_by
    assert result.metrics == seen == read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(losses(seen)) == 5
    model, params = load_model(tmp_path / "run" / "model")
    assert model.cfg == result.model.cfg == settings.model_config()
    for path in ("tok_emb", "final_norm"):
        for name, ours in result.params[path].items():
            assert np.array_equal(ours, params[path][name])


@pytest.mark.slow
@pytest.mark.parametrize("again", [{}, {"steps": 4}, None])
def test_a_resumed_run_is_the_run_without_a_break(text, tmp_path, again):
    settings = TrainSettings(text=[text], steps=4, drop_rate=0.1, **SMALL)
    alone = obscura_jax.train(settings, tmp_path / "alone")
    short = obscura_jax.train(settings, tmp_path / "two", schedule=AT_ONCE)
    assert short.steps == 1
    given = settings if again is None else again
    resumed = obscura_jax.train(given, tmp_path / "two", resume=True, scan=True)
    assert resumed.steps == 4
    np.testing.assert_allclose(losses(resumed.metrics), losses(alone.metrics), rtol=1e-5)
    assert math.dist(losses(alone.metrics)[:2], losses(alone.metrics)[1:3]) > 1e-3


@pytest.mark.slow
def test_an_interrupted_call_can_be_resumed(text, tmp_path):
    """Python's own Ctrl-C: KeyboardInterrupt leaves the folder unlocked."""
    settings = TrainSettings(text=[text], steps=4, **SMALL)

    def interrupt(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    every = Schedule(save_every=1)
    with pytest.raises(KeyboardInterrupt):
        obscura_jax.train(settings, tmp_path / "run", schedule=every, on_metrics=interrupt)
    seen = []
    result = obscura_jax.train({}, tmp_path / "run", resume=True, on_metrics=seen.append)
    assert seen[0]["step"] == 2
    alone = obscura_jax.train(settings, tmp_path / "alone")
    assert losses(result.metrics) == losses(alone.metrics)
    assert weights(tmp_path / "run") == weights(tmp_path / "alone")


def test_a_folder_with_settings_of_the_earlier_format_is_resumed(text, tmp_path):
    obscura_jax.train(
        TrainSettings(text=[text], steps=3, **SMALL), tmp_path / "run", schedule=AT_ONCE
    )
    path = tmp_path / "run" / "settings.json"
    ours = json.loads(path.read_text())
    values = {name: ours[name] for name in EARLIER if name in ours}
    values |= {"accumulate": 1, "lr": 1e-3, "final_fraction": 0.1, "held_out": 0.1}
    path.write_text(json.dumps({**values, "chunk": None, "recompute": None}))
    assert json.loads(path.read_text()).keys() == EARLIER.keys()
    assert obscura_jax.train({}, tmp_path / "run", resume=True).steps == 3
    assert json.loads(path.read_text()) == ours


def test_bad_calls_are_refused_and_leave_no_folder(text, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="there is no text to train on; name text files"):
        obscura_jax.train(TrainSettings(), run)  # standard input is the command's
    with pytest.raises(FileNotFoundError, match="no text at"):
        obscura_jax.train(TrainSettings(text=[tmp_path / "none"]), run)
    with pytest.raises(ValueError, match="contains no training run to resume"):
        obscura_jax.train(TrainSettings(), run, resume=True)
    with pytest.raises(ValueError, match="the destination is empty"):
        obscura_jax.train(TrainSettings(text=[text]), "")
    with pytest.raises(ValueError, match="steps must be a whole number"):
        obscura_jax.train({"text": [text], "steps": 0}, run)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        obscura_jax.train({"text": [text], "lr": 1}, run)
    assert list(tmp_path.iterdir()) == [text]
    (run / "notes").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"is not empty \(notes\); choose a new or empty folder"):
        obscura_jax.train(TrainSettings(text=[text]), run)


def test_another_setting_is_refused_on_resume(text, tmp_path):
    run = tmp_path / "run"
    obscura_jax.train({"text": [text], "steps": 2, **SMALL}, run)
    before = weights(run)
    with pytest.raises(ValueError, match="was started with vocab_size=300, not 50257; leave vocab"):
        obscura_jax.train(TrainSettings(text=[text], steps=2), run, resume=True)
    with pytest.raises(ValueError, match="already contains a training run; resume it"):
        obscura_jax.train({"text": [text], "steps": 2, **SMALL}, run)
    assert weights(run) == before


def test_problems_that_do_not_end_a_run_are_warnings(text, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr("obscura_jax.runs.launch.loss_curves", fail)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        obscura_jax.train({"text": [text], "steps": 1, **SMALL}, tmp_path / "run")
    assert "no loss.png: no room" in [str(warning.message) for warning in seen]
