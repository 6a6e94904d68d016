"""`TrainSettings` and the options of `obscura train` that are generated from its fields."""

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args

import pytest

from obscura_jax.cli import train as command
from obscura_jax.config import PRESETS
from obscura_jax.nn.model import RematPolicy
from obscura_jax.runs.arguments import given_settings
from obscura_jax.runs.settings import TrainSettings, setting_of

# As version 0.1.0 wrote them for `obscura train --text a.txt --preset tiny --lr 0.02 --chunk 5`.
EARLIER = {
    "text": ["/home/me/a.txt"],
    "data": None,
    "preset": "tiny",
    "vocab_size": 50257,
    "emb_dim": 128,
    "n_heads": 4,
    "n_layers": 4,
    "context_length": 128,
    "drop_rate": 0.0,
    "steps": None,
    "epochs": None,
    "stride": None,
    "batch_size": 16,
    "accumulate": 2,
    "lr": 0.02,
    "warmup_steps": 50,
    "final_fraction": 0.3,
    "weight_decay": 0.1,
    "beta2": 0.99,
    "clip_norm": 1.0,
    "held_out": 0.2,
    "seed": 0,
    "dtype": "float32",
    "chunk": 5,
    "recompute": "blocks",
}


def parsed(*words):
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["train", "--out", "run", *map(str, words)])


def test_sizes_are_the_presets_or_the_defaults():
    plain, tiny = TrainSettings(), TrainSettings(preset="tiny", drop_rate=0.5)
    assert (plain.vocab_size, plain.emb_dim, plain.steps) == (50257, 128, 1000)
    assert plain.model_config().tie_weights
    assert tiny.emb_dim == PRESETS["tiny"].emb_dim
    assert tiny.model_config() == replace(PRESETS["tiny"], drop_rate=0.5)
    assert TrainSettings(epochs=3).steps is None


def test_paths_become_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert TrainSettings(text=[Path("a.txt"), "b.txt"]).text == (
        str(tmp_path / "a.txt"),
        str(tmp_path / "b.txt"),
    )
    assert TrainSettings(data="tokens").data == str(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": "a.txt"}, "text must be a list of paths, got 'a.txt'"),
        ({"text": []}, "text must be a list of paths"),
        ({"text": [3]}, "every entry of text must be a path, got 3"),
        ({"data": 3}, "data must be a path, got 3"),
        ({"text": ["a"], "data": "b"}, "text and data cannot both be given; leave one"),
        ({"steps": 3, "epochs": 1}, "steps and epochs cannot both be given; leave one"),
        ({"preset": "gpt2", "n_heads": 4}, "preset gpt2 has n_heads=12, not 4; leave one"),
        ({"preset": "other"}, "preset must be one of 124M, gpt2, gpt2-medium"),
        ({"emb_dim": 10}, "emb_dim=10 is not divisible by n_heads=4"),
        ({"emb_dim": 0}, "emb_dim must be a whole number of at least 1"),
        ({"steps": 2.0}, "steps must be a whole number of at least 1, got 2.0"),
        ({"drop_rate": 1}, r"drop_rate must be a number in \[0, 1\), got 1"),
        ({"val_fraction": 0}, r"val_fraction must be a number in \(0, 1\), got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number above 0, got nan"),
        ({"learning_rate": float("inf")}, "learning_rate must be a number above 0, got inf"),
        ({"learning_rate": None}, "learning_rate must be a number above 0, got None"),
        ({"end_lr_fraction": 1.1}, r"end_lr_fraction must be a number in \[0, 1\]"),
        ({"weight_decay": -1}, "weight_decay must be a number at least 0"),
        ({"clip_norm": "1"}, "clip_norm must be a number above 0, got '1'"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, got 'int8'"),
        ({"remat": True}, "remat must be one of elementwise, blocks, got True"),
    ],
)
def test_bad_values_are_refused(bad, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        TrainSettings(**bad)


REQUIRED = {f.name for f in fields(TrainSettings) if not setting_of(f.name).later}


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(),
        TrainSettings(text=["a.txt"], epochs=2, n_layers=3, remat="blocks"),
        TrainSettings(data="tokens", preset="gpt2", dtype="bfloat16", logits_chunk=7),
    ],
)
def test_json_keeps_every_setting(settings):
    saved = json.loads(json.dumps(settings.to_dict()))
    assert TrainSettings.from_dict(saved) == settings
    assert saved.keys() - REQUIRED == {"attention"}
    for name in REQUIRED:
        with pytest.raises(ValueError, match=f"^{name} is missing$"):
            TrainSettings.from_dict({n: value for n, value in saved.items() if n != name})


def test_settings_of_the_earlier_format_are_read():
    expected = TrainSettings(
        text=["/home/me/a.txt"],
        preset="tiny",
        grad_accum_steps=2,
        learning_rate=0.02,
        end_lr_fraction=0.3,
        val_fraction=0.2,
        logits_chunk=5,
        remat="blocks",
    )
    assert TrainSettings.from_dict(EARLIER) == expected
    assert TrainSettings.from_dict({**EARLIER, "lr": 0.03}) != expected
    assert TrainSettings.from_dict({**EARLIER, "preset": None}).emb_dim == 128


def test_only_changeable_settings_may_differ_on_resume():
    begun = TrainSettings(text=["/a.txt"], steps=9, remat="blocks")
    assert begun.resumed_with({}) == begun
    assert begun.resumed_with(begun.to_dict()) == begun
    assert begun.resumed_with({"steps": 9, "logits_chunk": 3}) == replace(begun, logits_chunk=3)
    assert begun.resumed_with({"remat": None}).remat is None
    for name, value in (("steps", 10), ("epochs", 1), ("preset", "tiny"), ("text", ["/b.txt"])):
        with pytest.raises(ValueError, match=f"was started with {name}=.*; leave {name} out"):
            begun.resumed_with({name: value})


def test_options_have_the_names_values_and_help_of_the_settings():
    assert {f.name for f in fields(TrainSettings)} <= vars(parsed()).keys()
    given = given_settings(
        parsed("--text", "a", "b", "--emb-dim", 8, "--learning-rate", 0.5, "--remat", "blocks")
    )
    assert given == {"text": ["a", "b"], "emb_dim": 8, "learning_rate": 0.5, "remat": "blocks"}
    assert setting_of("remat").kind.choices == get_args(RematPolicy)


def test_the_docstring_describes_every_setting():
    for f in fields(TrainSettings):
        assert f"    {f.name}: {setting_of(f.name).help}." in TrainSettings.__doc__


def test_options_are_grouped(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    lines = capsys.readouterr().out.split("options:")[1].splitlines()
    groups = [line.rstrip(":") for line in lines if line and not line.startswith(" ")]
    assert groups == ["data", "model", "optimizer", "memory", "devices", "run folder"]


OLD = [
    ("--held-out", "--val-fraction", "0.3"),
    ("--recompute", "--remat", "blocks"),
    ("--final-fraction", "--end-lr-fraction", "0.3"),
    ("--accumulate", "--grad-accum-steps", "3"),
    ("--chunk", "--logits-chunk", "3"),
    ("--lr", "--learning-rate", "0.3"),
    ("--keep", "--max-checkpoints", "3"),
]


@pytest.mark.parametrize(("old", "new", "value"), OLD)
def test_old_spellings_of_options_work_but_are_hidden(old, new, value, capsys):
    assert parsed(old, value) == parsed(new, value) != parsed()
    with pytest.raises(SystemExit):
        parsed(old, "x")
    with pytest.raises(SystemExit):
        parsed("--help")
    shown = capsys.readouterr().out
    assert f"{new} " in shown
    assert f"{old} " not in shown
