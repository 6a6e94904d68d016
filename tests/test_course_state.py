"""A conversion is total: every tensor used once, every leaf filled once, every shape checked."""

import math
import re
import tracemalloc
from dataclasses import replace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.interop.course_state import (
    from_course,
    infer_config,
    named_tensors,
    parameter_shapes,
    to_course,
)
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity import torch_reference

CFG = GPTConfig(
    vocab_size=17,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=False,
)
BIASED = replace(CFG, qkv_bias=True)
TIED = replace(CFG, tie_weights=True)
MASK = "trf_blocks.1.att.mask"


def course_state(cfg=CFG, seed=0):
    """A state dict of the course's model, of any float32 bits that are not NaN or infinite."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in torch_reference.GPTModel(cfg.to_dict()).state_dict().items():
        state[name] = tensor.numpy().copy()
        if not name.endswith("mask"):
            values = rng.integers(0, 2**32, tensor.shape, np.uint32).view(np.float32)
            state[name] = np.where(np.isfinite(values), values, np.float32(-0.0))
            state[name].flat[0] = 1e-45  # the smallest there is
    return state


def convert(state, **known):
    cfg = infer_config(state, {"n_heads": 3, **known})
    return cfg, *from_course(state, cfg)


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in flat}


@pytest.mark.parametrize("cfg", [CFG, BIASED, TIED, replace(CFG, n_layers=11)])
def test_shapes_are_those_that_the_model_declares(cfg):
    variables = jax.eval_shape(GPTModel(cfg).init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert parameter_shapes(cfg) == {
        name: leaf.shape for name, leaf in leaves(variables["params"]).items()
    }
    assert parameter_shapes(replace(cfg, n_layers=3)) != parameter_shapes(cfg)


@pytest.mark.parametrize(
    ("preset", "count"),  # Radford et al. 2019; the course counts its own in chapter 4
    [("124M", 163_009_536), ("gpt2", 124_439_808), ("gpt2-xl", 1_557_611_200)],
)
def test_presets_have_their_published_number_of_parameters(preset, count):
    assert sum(map(math.prod, parameter_shapes(PRESETS[preset]).values())) == count


@pytest.mark.parametrize("cfg", [CFG, BIASED])
def test_every_tensor_is_audited_once_and_every_leaf_filled_once(cfg):
    state = course_state(cfg)
    inferred, params, audit = convert(state)
    assert inferred == cfg
    assert [row.source for row in audit] == list(state)
    filled = [row.target for row in audit if row.target != "-"]
    assert sorted(filled) == sorted(leaves(params)) == sorted(parameter_shapes(cfg))
    assert [row.source for row in audit if row.target == "-"] == [
        f"trf_blocks.{n}.att.mask" for n in range(cfg.n_layers)
    ]
    for row in audit:
        assert row.shape == state[row.source].shape
        assert row.dtype == "float32"
        if row.target != "-":
            assert np.asarray(leaves(params)[row.target]).tobytes() == state[row.source].tobytes()


def test_the_round_trip_keeps_every_bit():
    state = course_state(BIASED)
    back = to_course(BIASED, convert(state)[1])
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert back[name].tobytes() == tensor.tobytes(), name
    zero = next(name for name, x in state.items() if np.signbit(x[x == 0]).any())
    state[zero] = state[zero] + np.float32(0)  # -0.0 becomes 0.0, an equal number
    assert np.array_equal(back[zero], state[zero])
    assert back[zero].tobytes() != state[zero].tobytes()


@pytest.mark.parametrize("cfg", [CFG, BIASED])
def test_a_missing_tensor_is_named(cfg):
    state = course_state(cfg)
    for name in state:
        with pytest.raises(
            ValueError, match=rf"missing.*{re.escape(name)}|{re.escape(name)}.*missing"
        ):
            convert({key: value for key, value in state.items() if key != name})
    assert convert({key: value for key, value in state.items() if "mask" not in key})[0] == cfg


@pytest.mark.parametrize(
    "name",
    [
        "scale",
        "",
        "trf_blocks",
        "trf_blocks.2.att.mask",
        "trf_blocks.00.att.mask",
        "trf_blocks.-1.norm1.scale",
        "trf_blocks.99999999999999999999.norm1.scale",
        f"trf_blocks.{'9' * 5000}.norm1.scale",
        "trf_blocks.0.att.W_query.bias",
        "trf_blocks.0.att.W_query.weight.weight",
        "out_head.bias",
        "params.tok_emb.weight",
    ],
)
def test_an_unexpected_tensor_is_named(name):
    state = course_state()
    for value in (state["final_norm.scale"], state[MASK]):
        with pytest.raises(ValueError, match=rf"unexpected.*{re.escape(name)}"):
            convert({**state, name: value})


@settings(max_examples=30, deadline=None)
@given(name=st.text() | st.from_regex(r"\Atrf_blocks\.[0-9]+\.[a-z0-9.]*\Z"))
def test_no_name_slips_through(name):
    state = {key: np.zeros(shape, np.float32) for key, shape in parameter_shapes(CFG).items()}
    if name not in state:
        with pytest.raises(ValueError, match=rf"(?s)unexpected.*{re.escape(name)}"):
            convert({**state, name: np.zeros(3, np.float32)}, n_layers=2)


@pytest.mark.parametrize("cfg", [CFG, BIASED])
def test_a_wrong_shape_is_named(cfg):
    state = course_state(cfg)
    for name, tensor in state.items():
        for wrong in (
            np.zeros((tensor.shape[0] + 1, *tensor.shape[1:]), np.float32),
            tensor.reshape(-1, 1) if tensor.ndim == 1 else tensor.T,
        ):
            if wrong.shape == tensor.shape:
                continue  # a square one transposed: no shape tells
            with pytest.raises(ValueError, match=re.escape(name)):
                from_course({**state, name: wrong}, cfg)
            # With no config the tables give the sizes, and it is the next tensor that differs.
            next_one = {"tok_emb.weight": "out_head", "pos_emb.weight": "mask"}.get(name, name)
            with pytest.raises(ValueError, match=rf"{re.escape(name)}|{re.escape(next_one)}"):
                convert({**state, name: wrong})
            with pytest.raises(ValueError, match=re.escape(name)):
                convert({**state, name: wrong}, **cfg.to_dict())


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, bool, ml_dtypes.bfloat16])
def test_the_causal_mask_is_taken_in_any_type(dtype):
    state = course_state()
    state[MASK] = state[MASK].astype(dtype)
    assert convert(state)[0] == CFG


def upper(k, size=11):
    return np.triu(np.ones((size, size), np.float32), k)


@pytest.mark.parametrize(
    "mask",
    [
        upper(1).T,
        upper(0),
        upper(2),
        1 - upper(1),
        upper(1) * 0,
        upper(1) * 0 + 1,
        upper(1) + np.eye(11) * np.nan,
        upper(1, 10),
        upper(1, 12),
        upper(1)[None],
        upper(1).ravel(),
    ],
)
def test_a_mask_that_is_not_causal_is_refused(mask):
    with pytest.raises(ValueError, match=re.escape(MASK)):
        convert({**course_state(), MASK: mask})


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_narrow_types_widen_exactly(dtype):
    every = np.arange(2**16, dtype=np.uint16).view(dtype)
    every = every[np.isfinite(every.astype(np.float32))]
    cfg = replace(CFG, vocab_size=len(every) // 12)
    state = course_state(cfg)
    state["tok_emb.weight"] = every[: cfg.vocab_size * 12].reshape(-1, 12)
    _, params, audit = convert(state)
    widened = np.asarray(params["tok_emb"]["weight"])
    assert widened.dtype == np.float32
    assert widened.astype(dtype).tobytes() == state["tok_emb.weight"].tobytes()
    expected = torch.tensor(state["tok_emb.weight"].view(np.uint16).astype(np.int32))
    torch_type = torch.float16 if dtype is np.float16 else torch.bfloat16
    expected = expected.to(torch.uint16).view(torch_type).float().numpy()
    assert widened.tobytes() == expected.tobytes()
    assert audit[0].note == "widened to float32"
    assert {row.note for row in audit[1:] if row.target != "-"} == {"as it is"}


def test_doubles_are_rounded_and_said_to_be():
    state = course_state()
    state["final_norm.scale"] = np.full(12, 1 + 2**-40)
    _, params, audit = convert(state)
    assert params["final_norm"]["scale"].dtype == jnp.float32
    assert (params["final_norm"]["scale"] == 1).all()
    assert {r.source for r in audit if r.note == "rounded to float32"} == {"final_norm.scale"}


@pytest.mark.parametrize(
    "value",
    [
        np.float32("nan"),
        np.float32("inf"),
        np.float16("-inf"),
        np.float64(1e300),
        np.int32(1),
        np.uint8(1),
        np.bool_(True),
        np.complex64(1),
    ],
)
@pytest.mark.parametrize("name", ["tok_emb.weight", "final_norm.scale"])
def test_values_that_no_parameter_has_are_refused(name, value):
    state = course_state()
    state[name] = np.zeros(state[name].shape, value.dtype)
    state[name].flat[-1] = value
    with pytest.raises(ValueError, match=re.escape(name)):
        convert(state)


def test_parameters_do_not_share_the_memory_of_the_torch_model():
    model = torch_reference.GPTModel({**CFG.to_dict(), "vocab_size": 1024})
    _, params, _ = convert({name: x.numpy() for name, x in model.state_dict().items()})
    before = jax.tree.map(np.array, params)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    jax.tree.map(np.testing.assert_array_equal, params, before)


def test_the_heads_must_be_given():
    with pytest.raises(ValueError, match=r"give n_heads \(--n-heads\), a divisor of emb_dim=12"):
        infer_config(course_state(), {})


def test_a_tied_head_must_be_said_to_be():
    state = course_state()
    del state["out_head.weight"]
    with pytest.raises(ValueError, match=r"out_head\.weight.*tie_weights"):
        convert(state)
    cfg, params, _ = convert(state, tie_weights=True)
    assert cfg == TIED
    assert "out_head" not in params
    with pytest.raises(ValueError, match=r"unexpected tensors: out_head\.weight"):
        convert(course_state(), tie_weights=True)
    back = to_course(TIED, params)
    assert back["out_head.weight"].tobytes() == state["tok_emb.weight"].tobytes()


@pytest.mark.parametrize(
    ("field", "value"),
    [("vocab_size", 18), ("context_length", 12), ("emb_dim", 24), ("n_layers", 2**31 - 1)],
)
def test_a_config_that_contradicts_the_tensors_is_refused(field, value):
    tracemalloc.start()
    with pytest.raises(ValueError, match=f"the config says {field}={value}"):
        convert(course_state(), **{field: value})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24  # nothing of that size is made


def test_what_the_config_says_decides_what_is_missing():
    with pytest.raises(ValueError, match=r"missing tensors: trf_blocks\.2\..* and 13 more"):
        convert(course_state(), n_layers=3)
    with pytest.raises(ValueError, match=r"unexpected tensors: trf_blocks\.1\..* and 13 more"):
        convert(course_state(), n_layers=1)
    with pytest.raises(ValueError, match=r"missing tensors: .*W_key\.bias and 5 more"):
        convert(course_state(), qkv_bias=True)
    with pytest.raises(ValueError, match=r"unexpected tensors: .*W_key\.bias and 5 more"):
        convert(course_state(BIASED), qkv_bias=False)
    with pytest.raises(ValueError, match="n_layers"):
        convert(course_state(), n_layers="2")


def test_a_gap_in_the_blocks_is_named():
    state = {k.replace("blocks.1.", "blocks.3."): v for k, v in course_state().items()}
    with pytest.raises(ValueError, match=r"missing.*trf_blocks\.1\..*unexpected.*trf_blocks\.3\."):
        convert(state)


@pytest.mark.parametrize(
    "names", [(), ("final_norm.scale",), ("module.tok_emb.weight", "pos_emb.weight")]
)
def test_what_is_not_a_course_checkpoint_is_called_so(names):
    with pytest.raises(ValueError, match="not a course checkpoint: tok_emb"):
        infer_config({name: np.zeros((2, 2), np.float32) for name in names}, {"n_heads": 1})


def test_a_tree_that_is_not_the_models_is_refused_by_name():
    params = convert(course_state())[1]
    good = named_tensors(CFG, params)
    assert list(good) == list(parameter_shapes(CFG))
    norm = params["final_norm"]
    for wrong, words in (
        (
            {**params, "final_norm": {"scale": norm["scale"]}},
            r"missing tensors: final_norm\.shift$",
        ),
        ({**params, "extra": norm}, r"unexpected tensors: extra\.scale and 1 more"),
        ({"params": params}, r"missing .*; unexpected tensors: params\."),
        (
            {**params, "final_norm": {**norm, "shift": np.zeros((1, 12))}},
            r"final_norm\.shift has shape",
        ),
        (
            {**params, "final_norm": {**norm, "shift": np.zeros(12, int)}},
            r"final_norm\.shift has type",
        ),
        ({**params, "final_norm": {**norm, "shift": None}}, r"missing tensors: final_norm\.shift"),
        ({**params, "final_norm": {**norm, "shift": "x"}}, r"final_norm\.shift has shape \(\)"),
        ([params], "missing tensors"),
        (None, "missing tensors"),
    ):
        for use in (named_tensors, to_course):
            with pytest.raises(ValueError, match=words):
                use(CFG, wrong)
    with pytest.raises(ValueError, match=r"has shape"):
        named_tensors(replace(CFG, vocab_size=18), params)
