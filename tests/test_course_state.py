"""A conversion uses every tensor once, fills every parameter once, and checks every shape."""

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

from obscura_jax.config import PRESETS
from obscura_jax.interop.build import build
from obscura_jax.interop.course_state import named_tensors, parameter_shapes, to_course
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt import torch_reference
from tests.support.models import BIASED, CFG, leaves

TIED = replace(CFG, tie_weights=True)
MASK = "trf_blocks.1.att.mask"


def course_state(cfg=CFG, seed=0):
    """Return a state dict of the course's model with any float32 bits but NaN and infinities."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in torch_reference.GPTModel(cfg.to_dict()).state_dict().items():
        state[name] = tensor.numpy().copy()
        if not name.endswith("mask"):
            values = rng.integers(0, 2**32, tensor.shape, np.uint32).view(np.float32)
            state[name] = np.where(np.isfinite(values), values, np.float32(-0.0))
            state[name].flat[0] = 1e-45  # the smallest positive number
    return state


def convert(state, **hints):
    found = build(state, {"n_heads": 3, **hints})
    return found.cfg, found.params, found.audit


@pytest.mark.parametrize("cfg", [CFG, BIASED, TIED, replace(CFG, n_layers=11)])
def test_parameter_shapes_are_those_of_the_model(cfg):
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
        with pytest.raises(ValueError, match=rf"(missing tensors: |none of ){re.escape(name)}"):
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
    ],
)
def test_an_unexpected_tensor_is_named(name):
    state = course_state()
    for value in (state["final_norm.scale"], state[MASK]):
        with pytest.raises(ValueError, match=rf"unexpected.*{re.escape(name)}"):
            convert({**state, name: value})
        with pytest.raises(ValueError, match=r"belong to two models: params\.tok_emb\.weight"):
            convert({**state, "params.tok_emb.weight": value})


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(name=st.text() | st.from_regex(r"\Atrf_blocks\.[0-9]+\.[a-z0-9.]*\Z"))
def test_any_unknown_name_is_refused(name):
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
                continue  # a transposed square matrix
            with pytest.raises(ValueError, match=re.escape(name)):
                convert({**state, name: wrong}, **cfg.to_dict())
            # Without a config the embedding tables give the sizes, and the next tensor differs.
            next_one = {"tok_emb.weight": "out_head", "pos_emb.weight": "mask"}.get(name, name)
            with pytest.raises(ValueError, match=rf"{re.escape(name)}|{re.escape(next_one)}"):
                convert({**state, name: wrong})


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8, bool, ml_dtypes.bfloat16])
def test_a_causal_mask_of_any_type_is_accepted(dtype):
    state = course_state()
    state[MASK] = state[MASK].astype(dtype)
    assert convert(state)[0] == CFG


C = CFG.context_length


def upper(k, size=C):
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
        upper(1) + np.eye(C) * np.nan,
        upper(1, C - 1),
        upper(1, C + 1),
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
    width = CFG.emb_dim
    cfg = replace(CFG, vocab_size=len(every) // width)
    state = course_state(cfg)
    state["tok_emb.weight"] = every[: cfg.vocab_size * width].reshape(-1, width)
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


def test_doubles_are_rounded_and_the_audit_says_so():
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
def test_values_that_float32_does_not_have_are_refused(name, value):
    state = course_state()
    state[name] = np.zeros(state[name].shape, value.dtype)
    state[name].flat[-1] = value
    with pytest.raises(ValueError, match=re.escape(name)):
        convert(state)


def test_parameters_are_copies_unless_an_alias_is_allowed():
    state = course_state()
    table = np.ones(CFG.vocab_size * CFG.emb_dim + 16, np.float32)
    table = table[-table.ctypes.data // 4 % 16 :][: CFG.vocab_size * CFG.emb_dim].reshape(
        -1, CFG.emb_dim
    )  # aligned to 64 bytes
    state["tok_emb.weight"] = table
    copied, aliased = (
        build(state, {"n_heads": 3}, allow_alias=allow).params for allow in (False, True)
    )
    before = jax.tree.map(np.array, copied)
    for tensor in state.values():
        tensor += 1
    jax.tree.map(np.testing.assert_array_equal, copied, before)
    np.testing.assert_array_equal(aliased["tok_emb"]["weight"], 2)


def test_the_number_of_heads_must_be_given():
    with pytest.raises(ValueError, match=r"give n_heads \(--n-heads\), a divisor of emb_dim=12"):
        build(course_state(), {})


def test_only_a_config_makes_a_missing_head_a_tied_one():
    state = course_state()
    del state["out_head.weight"]
    with pytest.raises(ValueError, match=r"out_head\.weight.*tie_weights"):
        convert(state)
    cfg, params, _ = convert(state, tie_weights=True)
    assert cfg == TIED
    assert "out_head" not in params
    with pytest.raises(ValueError, match=r"out_head\.weight is not tok_emb\.weight, but"):
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
    assert peak < 2**24  # nothing of that size is allocated


def test_a_config_with_other_blocks_or_biases_is_refused():
    for n_layers in (1, 3, "2"):
        with pytest.raises(
            ValueError, match=f"the config says n_layers={n_layers!r}, but .* has 2"
        ):
            convert(course_state(), n_layers=n_layers)
    with pytest.raises(ValueError, match=r"missing tensors: .*W_key\.bias and 5 more"):
        convert(course_state(), qkv_bias=True)
    with pytest.raises(ValueError, match=r"unexpected tensors: .*W_key\.bias and 5 more"):
        convert(course_state(BIASED), qkv_bias=False)


def test_a_gap_in_the_blocks_is_named():
    state = {k.replace("blocks.1.", "blocks.3."): v for k, v in course_state().items()}
    with pytest.raises(ValueError, match=r"missing.*trf_blocks\.1\..*unexpected.*trf_blocks\.3\."):
        convert(state)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "names of no known dialect: .* first are: none"),
        (("final_norm.scale",), "names of no known dialect: .* first are: final_norm"),
        (("module.tok_emb.weight", "pos_emb.weight"), "only some names have the prefix"),
        (("tok_emb.weight", "final_norm.scale"), r"missing tensors: pos_emb\.weight"),
        (("tok_emb.weight", "pos_emb.weight"), r"missing tensors: out_head\.weight"),
    ],
)
def test_tensors_that_are_no_course_model_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        build({name: np.zeros((2, 2), np.float32) for name in names}, {"n_heads": 1})


def test_parameters_of_another_model_are_refused_by_name():
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
