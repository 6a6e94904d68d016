"""Intermediates of both frameworks have the same names and values, and can be replaced."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from obscura_jax.nn.intermediates import names
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt.capture import apply_with_patches, capture
from obscura_jax.parity.gpt.torch_capture import capture_torch, course_taps, hugging_face_taps
from tests.support import faults, models
from tests.support.models import BIASED, IDS, course_model, hf_model

MODEL = GPTModel(BIASED)
ERROR = 4 * 9e-16  # measured: 8.9e-16 of the largest entry, in float64


def params_of(reference, dtype=jnp.float32):
    state = {name: x.float() for name, x in reference.state_dict().items()}
    params = models.params_of(state, BIASED)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def without_attention(found):
    """Return intermediates without attention scores and weights, which PyTorch's modules lack."""
    return {k: x for k, x in found.items() if not k.endswith(("att.scores", "att.weights"))}


def differences(ours, theirs):
    assert list(ours) == list(theirs)
    return {
        name: np.abs(ours[name] - theirs[name]).max() / np.abs(theirs[name]).max() for name in ours
    }


def test_names_and_values_are_those_of_torch(x64):
    reference = course_model()
    found = capture(MODEL, params_of(reference, jnp.float64), IDS)
    assert list(found) == names(BIASED)
    ours = without_attention(found)
    theirs = capture_torch(reference.double(), IDS, course_taps(2))
    assert max(differences(ours, theirs).values()) <= ERROR
    reference.trf_blocks[1].norm1.eps = 1.1e-5
    apart = differences(ours, capture_torch(reference, IDS, course_taps(2)))
    differing = [name for name, x in apart.items() if x > ERROR]
    assert differing[0] == "trf_blocks.1.norm1"
    assert "trf_blocks.1.att.context" in differing
    assert differing[-1] == "logits"


def test_intermediates_have_the_documented_shapes():
    found = capture(MODEL, params_of(course_model()), IDS)
    shapes = {name.replace("trf_blocks.1.", ""): x.shape for name, x in found.items()}
    assert shapes["pos_emb"] == (11, 12)
    for name in ("tok_emb", "embeddings", "norm1", "att.W_key", "att.context", "residual"):
        assert shapes[name] == (3, 11, 12), name
    assert shapes["att.scores"] == shapes["att.weights"] == (3, 3, 11, 11)
    assert shapes["ff.layers.0"] == shapes["ff.layers.1"] == (3, 11, 48)
    assert shapes["logits"] == (3, 11, 17)


def test_captured_logits_are_those_of_apply():
    params = params_of(course_model())
    plain = MODEL.apply({"params": params}, IDS)
    np.testing.assert_array_equal(capture(MODEL, params, IDS)["logits"], plain)
    jitted = jax.jit(capture, static_argnums=(0, 3))(MODEL, params, IDS, None)
    assert list(jitted) == names(BIASED)  # jit sorts plain dictionaries
    assert np.abs(jitted["logits"] - plain).max() <= 4 * 2.4e-7  # measured: 2.4e-7, another fusion


def test_captured_values_can_be_reduced():
    found = capture(MODEL, params_of(course_model()), IDS, lambda name, x: x[..., -1, :])
    assert found["logits"].shape == (3, 17)


@pytest.mark.parametrize("attention", [faults.InPlace, faults.Plain])
def test_a_users_module_is_captured(attention):
    """One masks its scores in place; the other has no dropout."""
    reference = course_model()
    module = attention(BIASED.to_dict())
    module.load_state_dict(reference.state_dict())
    theirs = capture_torch(module, IDS, course_taps(2))
    ours = without_attention(capture(MODEL, params_of(reference), IDS))
    assert max(differences(ours, theirs).values()) <= 4 * 6e-7  # measured: 6e-7


class OtherStyle(torch.nn.Module):
    """Feed-forward layers whose activation is a function instead of a module."""

    def __init__(self, ff):
        super().__init__()
        self.layers = torch.nn.ModuleDict({"0": ff.layers[0], "2": ff.layers[2]})

    def forward(self, x):
        hidden = torch.nn.functional.gelu(self.layers["0"](x), approximate="tanh")
        return self.layers["2"](hidden)


def block_by_keyword(block, x):
    x = x + block.att(x=block.norm1(x=x))
    return x + block.ff(x=block.norm2(x=x))


def test_a_module_in_another_style_is_captured():
    """It calls its parts by keyword, uses functions as layers, and overwrites its input."""
    module = course_model()
    expected = capture_torch(module, IDS, course_taps(2))
    for block in module.trf_blocks:
        block.ff = OtherStyle(block.ff)
        block.forward = partial(block_by_keyword, block)
    module.register_forward_hook(lambda _, args, out: (args[0].zero_(), None)[1])
    given = IDS.copy()
    found = capture_torch(module, given, course_taps(2))
    np.testing.assert_array_equal(given, IDS)
    assert list(found) == list(expected)
    assert max(differences(found, expected).values()) <= 4 * 2.1e-7  # measured: 2.1e-7


def test_bfloat16_values_are_returned_as_float32():
    """NumPy has no bfloat16."""
    module = course_model().bfloat16()
    found = capture_torch(module, IDS, course_taps(2))
    assert {x.dtype for x in found.values()} == {np.dtype("float32")}
    assert found["logits"].shape == (3, 11, 17)


def test_logits_of_the_wrong_width_are_errors():
    module = course_model()
    assert "logits" in capture_torch(module, IDS, course_taps(2), vocab_size=17)
    with pytest.raises(ValueError, match=r"return logits \(3, 11, 18\)"):
        capture_torch(module, IDS, course_taps(2), vocab_size=18)


def test_transformers():
    """Queries, keys and values are one tensor there."""
    theirs = hf_model(BIASED, attn_implementation="eager")
    found = capture_torch(theirs, IDS, hugging_face_taps(2))
    parts = ("scores", "weights", "W_query", "W_key", "W_value")
    assert list(found) == [n for n in names(BIASED) if n.rpartition("att.")[2] not in parts]
    body = theirs.transformer
    with torch.no_grad():
        first = body.h[0].ln_1(torch.tensor(found["embeddings"]))
        mixed = body.h[1].attn.c_proj(torch.tensor(found["trf_blocks.1.att.context"]))
    np.testing.assert_array_equal(found["trf_blocks.0.norm1"], first.numpy())
    np.testing.assert_array_equal(found["trf_blocks.1.att.out_proj"], mixed.numpy())


def test_capturing_restores_the_module():
    module = course_model().train()
    module.trf_blocks[1].eval()
    modes = [part.training for part in module.modules()]
    capture_torch(module, IDS, course_taps(2))
    assert [part.training for part in module.modules()] == modes
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in module.modules())
    with pytest.raises(IndexError):
        capture_torch(module, IDS + 17, course_taps(2))
    assert not any(p._forward_hooks or p._forward_pre_hooks for p in module.modules())
    assert torch.is_grad_enabled()


def test_a_module_used_in_two_places_has_two_outputs():
    module = course_model()
    apart = capture_torch(module, IDS, course_taps(2))
    module.trf_blocks[1].ff.layers[1] = module.trf_blocks[0].ff.layers[1]
    shared = capture_torch(module, IDS, course_taps(2))
    assert list(shared) == list(apart)
    for name in apart:
        np.testing.assert_array_equal(shared[name], apart[name], name)
    places = [f"trf_blocks.{n}.ff.layers.1" for n in range(2)]
    assert np.abs(shared[places[0]] - shared[places[1]]).max() > 0.1


def test_patching_with_the_same_values_changes_nothing():
    params = params_of(course_model())
    found = capture(MODEL, params, IDS)
    for name in ("embeddings", "trf_blocks.0.att.weights", "trf_blocks.1", "logits"):
        np.testing.assert_array_equal(
            apply_with_patches(MODEL, params, IDS, found), found["logits"], name
        )


def test_patching_a_block_gives_the_logits_of_the_other_prompt():
    params = params_of(course_model())
    here, there = (capture(MODEL, params, ids) for ids in (IDS, (IDS + 1) % 17))
    streams = ("trf_blocks.0", "trf_blocks.1.residual", "trf_blocks.1")
    for name in ("embeddings", "trf_blocks.0.residual", *streams, "final_norm"):
        patched = apply_with_patches(MODEL, params, IDS, {name: there[name]})
        np.testing.assert_array_equal(patched, there["logits"])
        assert np.abs(patched - here["logits"]).max() > 0.1
    key = "trf_blocks.1.att.context"
    partly = apply_with_patches(MODEL, params, IDS, {key: there[key]})
    for logits in (here["logits"], there["logits"]):
        assert np.abs(partly - logits).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("part", ["scores", "weights", "context", "W_query", "out_proj"])
def test_patching_affects_only_later_values(part):
    """The gradient is 0 for parameters before the patched value, and not for the value itself."""
    params = params_of(course_model())
    name = f"trf_blocks.0.att.{part}"
    value = capture(MODEL, params, IDS)[name]

    def score(params, value):
        return apply_with_patches(MODEL, params, IDS, {name: value}).sum()

    of_params, of_value = jax.jit(jax.grad(score, argnums=(0, 1)))(params, value)
    assert np.abs(of_value).max() > 0
    flat = flatten_dict(of_params, sep=".")
    assert not np.any(flat["trf_blocks.0.att.W_query.weight"])
    assert np.any(flat["trf_blocks.0.ff.layers.0.weight"])


def test_bad_replacements_are_errors():
    params = params_of(course_model())
    with pytest.raises(
        ValueError, match=r"called 'trf_blocks\.0\.att\.score'; similar names: .*scores"
    ):
        apply_with_patches(MODEL, params, IDS, {"trf_blocks.0.att.score": 1})
    with pytest.raises(
        ValueError, match=r"norm2 has shape \(3, 11, 12\), but its replacement has shape \(2,\)"
    ):
        apply_with_patches(MODEL, params, IDS, {"trf_blocks.0.norm2": np.zeros(2)})
