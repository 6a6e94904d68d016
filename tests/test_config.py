"""The config refuses what no model has, and names the field; extras say what to install."""

import dataclasses
import json
import sys
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import __version__
from obscura_jax.checks import check_heads, check_size
from obscura_jax.config import GPT_CONFIG_124M, PRESETS, GPTConfig
from obscura_jax.extras import MissingExtraError, require

CFG = {
    "vocab_size": 17,
    "context_length": 11,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
NOT_SIZES = (
    *(0, -1, 1.0, "3", None, True, float("nan"), 2**31, 10**400),
    *(np.array(2.7), np.array([3, 4]), np.bool_(True), jnp.asarray(3.0)),
)
BAD = {
    **dict.fromkeys(("vocab_size", "context_length", "emb_dim", "n_heads", "n_layers"), NOT_SIZES),
    "drop_rate": (
        -0.1,
        1,
        1.0,
        float("nan"),
        float("inf"),
        "0.1",
        None,
        False,
        10**400,
        np.float32(1),
        1j,
    ),
    "qkv_bias": (0, 1, "False", None),
    "tie_weights": (0, 1, "False", None),
    "ln_eps": (
        0,
        0.0,
        np.float32(0),
        -1e-5,
        1,
        float("nan"),
        float("inf"),
        "1e-5",
        None,
        True,
        10**400,
    ),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(field, value):
    with pytest.raises(ValueError, match=field):
        GPTConfig(**{**CFG, field: value})
    with pytest.raises(ValueError, match=field):
        GPTConfig.of({**CFG, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 1),
        ("vocab_size", 2**31 - 1),
        ("n_heads", 12),
        ("drop_rate", 0),
        ("drop_rate", 0.999),
        ("drop_rate", np.float32(0.5)),
        ("drop_rate", Fraction(1, 2)),
        ("n_layers", np.int64(3)),
        ("n_heads", np.array(3)),
        ("vocab_size", jnp.asarray(3)),
        ("ln_eps", np.float32(0.5)),
        ("qkv_bias", True),
        ("tie_weights", True),
        ("ln_eps", 1e-12),
    ],
)
def test_a_value_at_the_edge_is_kept(field, value):
    cfg = GPTConfig(**{**CFG, field: value})
    assert getattr(cfg, field) == value
    assert type(getattr(cfg, field)) in (bool, int, float), "plain, so JSON and hash take it"
    assert GPTConfig(**json.loads(json.dumps(cfg.to_dict()))) == cfg


def test_the_width_must_split_into_the_heads():
    with pytest.raises(ValueError, match=r"emb_dim=12 is not divisible by n_heads=5"):
        GPTConfig(**{**CFG, "n_heads": 5})
    with pytest.raises(ValueError, match=r"d_out=7 is not divisible by num_heads=2"):
        check_heads("d_out", 7, "num_heads", 2)
    check_heads("d_out", 6, "num_heads", 2)


def test_a_size_is_named_in_its_error():
    assert check_size("steps", 1) == 1
    with pytest.raises(ValueError, match=r"^steps must be a whole number of at least 1, got 0$"):
        check_size("steps", 0)


def test_of_takes_the_course_dictionary_and_a_config():
    cfg = GPTConfig.of(GPT_CONFIG_124M)
    assert GPTConfig.of(cfg) is cfg
    assert cfg == GPTConfig(**GPT_CONFIG_124M) == PRESETS["124M"]
    assert cfg.to_dict() == {**GPT_CONFIG_124M, "tie_weights": False, "ln_eps": 1e-5}
    assert GPTConfig.of(cfg.to_dict()) == cfg
    assert GPTConfig.of({**GPT_CONFIG_124M, "n_heads": 6}) != cfg


def test_of_names_what_is_missing_and_what_is_unknown():
    for field in CFG:
        with pytest.raises(ValueError, match=f"lacks {field}$"):
            GPTConfig.of({name: value for name, value in CFG.items() if name != field})
    with pytest.raises(ValueError, match=r"unknown entries: 3, n_head$"):
        GPTConfig.of({**CFG, "n_head": 3, 3: 4})


def test_a_config_is_a_value():
    cfg = GPTConfig(**CFG)
    assert hash(cfg) == hash(GPTConfig(**CFG))
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.n_heads = 4


def test_require_imports_what_is_there():
    assert require("json", "nothing", "a test") is sys.modules["json"]


def test_require_says_how_to_install_what_is_not_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError) as caught:
        require("torch", "torch", "reading w.pth")
    assert str(caught.value) == (
        "reading w.pth needs torch: run pip install -e '.[torch]' in the clone of obscura_jax"
    )
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value, ValueError)


def test_require_names_the_wheel_outside_a_clone(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("obscura_jax.extras._CLONE", tmp_path)
    with pytest.raises(MissingExtraError) as caught:
        require("torch", "torch", "reading w.pth")
    assert str(caught.value) == (
        f"reading w.pth needs torch: run pip install 'obscura_jax-{__version__}-py3-none-any.whl"
        "[torch]' in the folder of that wheel"
    )


def test_require_says_why_an_installed_package_does_not_load(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("OSError", "ImportError"):
        (tmp_path / f"broken_{kind}.py").write_text(f"raise {kind}('libwhole.so is missing')")
        with pytest.raises(MissingExtraError, match=r"does not load \(libwhole.so is missing\)"):
            require(f"broken_{kind}", "torch", "a test")
