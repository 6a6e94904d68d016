"""Configs of other programs are read: numbers as text, null, other names of one function."""

import json
import math

import numpy as np
import pytest
import torch

from obscura_jax.interop.checkpoint import load_model, save_hf
from obscura_jax.interop.config_values import read_values, whole_number
from obscura_jax.interop.hf_config import from_course_config, from_hf_config, from_model_args
from tests.support.checkpoints import change_json
from tests.support.models import (
    BIASED,
    LOGITS,
    NANOGPT_ARGS,
    TIED,
    course_model,
    distance,
    hf_model,
    model_of,
    nanogpt_model,
    same_bits,
    transformers,
)

SAME_AS_GELU_NEW = ("gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh")


def test_all_names_of_the_tanh_form_are_one_function():
    """In float64, over the range where it is neither 0 nor the identity."""
    functions = transformers().activations.ACT2FN
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    expected = functions["gelu_new"](x)
    for name in SAME_AS_GELU_NEW:
        # measured: at most 9.2e-13, of gelu_fast, whose constants are rounded; others 9e-16
        assert (functions[name](x) - expected).abs().max() <= 1e-12, name
    for name in ("gelu", "gelu_python"):
        away = (functions[name](x) - expected).abs().max()
        assert 4.7e-4 < away < 5e-4, name  # as the message says
    assert (functions["quick_gelu"](x) - expected).abs().max() > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gelu_new", *SAME_AS_GELU_NEW])
def test_every_name_of_the_tanh_form_is_read(tmp_path, name):
    theirs = hf_model(activation_function=name)
    theirs.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["activation_function"] == name
    assert distance(tmp_path, theirs) <= LOGITS


@pytest.mark.parametrize("name", ["gelu", "gelu_python", "gelu_10", "quick_gelu", "relu", None, []])
def test_other_activations_are_refused(tmp_path, name):
    save_hf(tmp_path, TIED, model_of(TIED))
    change_json(tmp_path / "config.json", activation_function=name)
    words = r"activation_function=.*; this model computes 'gelu_new'$"
    with pytest.raises(ValueError, match=words) as error:
        load_model(tmp_path)
    exact = name in ("gelu", "gelu_python")
    assert ("the exact (erf) form, which differs by up to 5e-4" in str(error.value)) == exact


@pytest.mark.parametrize("value", [4, 4.0, "4", "4.0", " 4", np.int64(4), np.float32(4)])
def test_whole_numbers_are_read_in_any_spelling(value):
    assert whole_number("n", value) == 4
    assert type(whole_number("n", value)) is int


@pytest.mark.parametrize(
    "value", [True, False, 4.5, "4.5", "four", "", [4], {}, math.nan, math.inf, "inf", "9" * 5000]
)
def test_a_value_that_is_no_whole_number_is_refused_with_its_type(value):
    words = rf"^the config says n_head=.*, of type {type(value).__name__}; it must be a whole num"
    with pytest.raises(ValueError, match=words) as error:
        whole_number("n_head", value)
    assert len(str(error.value)) < 200
    with pytest.raises(ValueError, match=words):
        from_hf_config({"n_head": value})
    with pytest.raises(ValueError, match=words):
        from_model_args({"model_args": {"n_head": value}})
    with pytest.raises(ValueError, match=words.replace("n_head", "n_heads")):
        from_course_config({"n_heads": value})


def test_null_leaves_a_size_out():
    assert whole_number("n", None) is None
    assert read_values(
        {"a": None, "b": "3"}, {"a": "n_heads", "b": "n_layers", "c": "emb_dim"}
    ) == {"n_layers": 3}
    assert "n_heads" not in from_hf_config({"n_head": None, "n_inner": None})
    assert from_hf_config({"n_embd": "12", "n_inner": "48"})["emb_dim"] == 12
    with pytest.raises(ValueError, match=r"n_inner=47; this model has 4 n_embd = 48"):
        from_hf_config({"n_embd": 12.0, "n_inner": "47"})


def test_a_hugging_face_config_may_have_numbers_as_text(tmp_path):
    save_hf(tmp_path, TIED, model_of(TIED))
    sizes = {"n_head": "3", "n_layer": 2.0, "n_embd": "12", "n_positions": "11", "vocab_size": 17.0}
    change_json(tmp_path / "config.json", **sizes, n_inner="48", layer_norm_epsilon="1e-5")
    model, params = load_model(tmp_path)
    assert model.cfg == TIED
    assert same_bits(params, model_of(TIED))
    load_model(tmp_path, n_heads=3)
    with pytest.raises(ValueError, match="it has n_heads=3, not 4"):
        load_model(tmp_path, n_heads=4)
    change_json(tmp_path / "config.json", n_head="4", n_layer="3")
    with pytest.raises(ValueError, match="the config says n_layers=3, but the file has 2"):
        load_model(tmp_path)
    change_json(tmp_path / "config.json", n_head=None, n_layer=None)
    with pytest.raises(ValueError, match="give n_heads"):
        load_model(tmp_path)
    assert load_model(tmp_path, n_heads=3)[0].cfg == TIED


def test_nanogpts_model_args_may_be_text(tmp_path):
    path = tmp_path / "ckpt.pt"
    text = {name: str(value) for name, value in NANOGPT_ARGS.items()}
    torch.save({"model": nanogpt_model().state_dict(), "model_args": text}, path)
    assert load_model(path)[0].cfg == TIED
    load_model(path, n_heads=3)
    with pytest.raises(ValueError, match="it has n_heads=3, not 4"):
        load_model(path, n_heads=4)
    torch.save(
        {"model": nanogpt_model().state_dict(), "model_args": {**text, "n_head": "3.5"}}, path
    )
    with pytest.raises(ValueError, match=r"ckpt\.pt: .* n_head='3\.5', of type str; it must be a"):
        load_model(path)


def test_a_course_config_may_have_numbers_as_text(tmp_path):
    path = tmp_path / "x.pth"
    settings = {name: str(value) for name, value in BIASED.to_dict().items()}
    settings |= {"qkv_bias": np.True_, "tie_weights": False, "drop_rate": None}
    torch.save({"model": course_model().state_dict(), "config": settings}, path)
    cfg = load_model(path)[0].cfg
    assert (cfg.drop_rate, cfg.n_heads, cfg.qkv_bias) == (0, 3, True)
    settings["qkv_bias"] = "True"
    torch.save({"model": course_model().state_dict(), "config": settings}, path)
    with pytest.raises(
        ValueError, match=r"x\.pth: .* qkv_bias='True', of type str; it must be true"
    ):
        load_model(path)


@pytest.mark.parametrize(
    ("rate", "read"), [(None, 0), (1, 0), (1.0, 0), ("1.0", 0), ("0.2", 0.2), (0, 0), (0.3, 0.3)]
)
def test_a_drop_rate_of_one_or_null_is_read_as_zero(tmp_path, rate, read):
    """A model that is only run drops nothing, so even a rate of 1 is no error."""
    save_hf(tmp_path, TIED, model_of(TIED))
    rates = dict.fromkeys(("resid_pdrop", "attn_pdrop", "embd_pdrop"), rate)
    change_json(tmp_path / "config.json", **rates)
    model, params = load_model(tmp_path)
    assert model.cfg.drop_rate == read
    assert same_bits(params, model_of(TIED))
    content = {
        "model": nanogpt_model().state_dict(),
        "model_args": {**NANOGPT_ARGS, "dropout": rate},
    }
    torch.save(content, tmp_path / "ckpt.pt")
    assert load_model(tmp_path / "ckpt.pt")[0].cfg.drop_rate == read


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("resid_pdrop", -0.1, "resid_pdrop=-0.1, of type float; it must be a number from 0 to 1"),
        ("resid_pdrop", 1.5, "resid_pdrop=1.5, of type float; it must be a number from 0 to 1"),
        ("resid_pdrop", math.nan, "resid_pdrop=nan, of type float; it must be a number from 0 to"),
        ("resid_pdrop", True, "resid_pdrop=True, of type bool; it must be a number from 0 to 1"),
        ("resid_pdrop", "a", "resid_pdrop='a', of type str; it must be a number from 0 to 1"),
        ("layer_norm_epsilon", None, "layer_norm_epsilon=None, of type NoneType; it must be a n"),
        ("layer_norm_epsilon", True, "layer_norm_epsilon=True, of type bool; it must be a number"),
        ("layer_norm_epsilon", math.nan, r"ln_eps must be a number in \(0, 1\), got nan"),
        ("layer_norm_epsilon", 10**400, r"ln_eps must be a number in \(0, 1\), got 1000"),
        ("layer_norm_epsilon", 0, r"ln_eps must be a number in \(0, 1\), got 0"),
        ("tie_word_embeddings", "false", "tie_word_embeddings='false', of type str; it must be tr"),
        ("tie_word_embeddings", None, "tie_word_embeddings=None, of type NoneType; it must be tr"),
        ("tie_word_embeddings", 1, "tie_word_embeddings=1, of type int; it must be true or false"),
        ("n_head", 0, "n_heads must be a whole number of at least 1, got 0"),
        ("n_layer", -2, "the config says n_layers=-2, but the file has 2"),
        ("scale_attn_weights", None, "scale_attn_weights=None; this model computes True"),
    ],
)
def test_a_wrong_value_of_a_used_entry_is_refused(tmp_path, name, value, words):
    save_hf(tmp_path, TIED, model_of(TIED))
    change_json(tmp_path / "config.json", **{name: value})
    with pytest.raises(ValueError, match=words) as error:
        load_model(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_malformed_record_is_ignored(tmp_path):
    save_hf(tmp_path, TIED, model_of(TIED))
    change_json(tmp_path / "config.json", obscura_jax=["qkv_bias"])
    assert load_model(tmp_path)[0].cfg == TIED
