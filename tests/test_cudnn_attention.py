"""The choice of cuDNN's attention, and the call that is made; cuDNN itself needs a GPU."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.decoding import cached_forward
from obscura_jax.decoding.cache import cache_layout
from obscura_jax.nn import cudnn_attention
from obscura_jax.nn.cudnn_attention import use_cudnn
from obscura_jax.nn.target import Target, choosing_attention, current_target, tracing_for
from obscura_jax.runs.settings import TrainSettings
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state, train_step

pytestmark = pytest.mark.slow

CFG = GPTConfig(
    vocab_size=101,
    context_length=37,
    emb_dim=48,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=False,
)
MODEL = GPTModel(CFG)
PARAMS = gpt2_init(CFG, jax.random.key(0))
HALF = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
IDS = jax.random.randint(jax.random.key(1), (3, 29), 0, 101)
QUERIES = jnp.zeros((2, 3, 7, 16), jnp.bfloat16)
GPU = Target("cuda")


@pytest.fixture
def a100(monkeypatch):
    """Let JAX report an A100; return the device, whose figures a test may change."""
    device = SimpleNamespace(compute_capability="8.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    return device


@pytest.fixture
def calls(monkeypatch):
    """Compute what cuDNN would with XLA; return the arguments of each call."""
    seen = []
    real = jax.nn.dot_product_attention

    def attention(query, key, value, **options):
        seen.append((query.shape, query.dtype, options))
        return real(query, key, value, **{**options, "implementation": "xla"})

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    return seen


EXPECTED = {"is_causal": True, "implementation": "cudnn"}  # in particular no mask


def test_auto_uses_cudnn_on_a_gpu_for_16_bits_without_dropout(a100):
    with tracing_for(GPU):
        assert use_cudnn(QUERIES)
        assert use_cudnn(QUERIES.astype(jnp.float16))
        assert not use_cudnn(QUERIES, drops=True)
        assert not use_cudnn(QUERIES.astype(jnp.float32))
        assert not use_cudnn(QUERIES[..., :15])
        assert not use_cudnn(jnp.zeros((1, 1, 1, 136), jnp.bfloat16))
        a100.compute_capability = "7.5"
        assert not use_cudnn(QUERIES)
        a100.compute_capability = "10.0"
        assert use_cudnn(QUERIES)
        with choosing_attention("reference"):
            assert not use_cudnn(QUERIES)
    for other in (Target("cpu"), Target("tpu"), replace(GPU, multi_device=True)):
        with tracing_for(other):
            assert not use_cudnn(QUERIES)


def test_auto_uses_the_reference_for_a_gpu_that_is_not_present():
    with tracing_for(GPU):
        assert not use_cudnn(QUERIES)


@pytest.mark.parametrize(
    ("target", "dtype", "drops", "message"),
    [
        (Target("cpu"), "bfloat16", False, "needs a CUDA device, but this program is for cpu; use"),
        (Target("tpu"), "bfloat16", False, "needs a CUDA device, but this program is for tpu; use"),
        (GPU, "float32", False, "needs 16-bit numbers, but the queries are float32; compute in"),
        (GPU, "bfloat16", True, "cannot drop attention weights; set drop_rate to 0, or use"),
    ],
)
def test_cudnn_is_refused_where_it_cannot_be_used(target, dtype, drops, message):
    with (
        tracing_for(replace(target, attention="cudnn")),
        pytest.raises(ValueError, match=f'^attention="cudnn" {message}'),
    ):
        use_cudnn(QUERIES.astype(dtype), drops=drops)


def test_auto_is_the_reference_on_a_cpu():
    def traced(kind):
        with choosing_attention(kind):
            return str(jax.make_jaxpr(lambda p: MODEL.apply({"params": p}, IDS))(HALF))

    with tracing_for(Target("cpu")):
        assert traced("auto") == traced("reference")


def test_a_second_choice_traces_again():
    seen = []
    function = jax.jit(lambda x: seen.append(current_target().attention) or x)
    for kind in ("auto", "reference", "auto", "cudnn"):
        with choosing_attention(kind):
            function(1.0)
    assert seen == ["auto", "reference", "cudnn"]


def logits(ids, kind):
    with tracing_for(replace(GPU, attention=kind)):
        return np.asarray(MODEL.apply({"params": HALF}, ids))


def test_the_model_calls_cudnn_without_a_mask(calls):
    expected = logits(IDS, "reference")
    assert not calls
    found = logits(IDS, "cudnn")
    assert calls == [((3, 29, 3, 16), jnp.bfloat16, EXPECTED)] * CFG.n_layers
    np.testing.assert_allclose(found, expected, atol=1e-3)  # 0 measured
    np.testing.assert_allclose(logits(IDS[0], "cudnn"), expected[0], atol=1e-3)  # 0 measured
    assert np.abs(logits(IDS[:, ::-1], "cudnn") - expected).max() > 0.2  # 0.68 measured


def test_reading_prompts_calls_cudnn(calls):
    cache = cache_layout(CFG, jnp.bfloat16).empty(3, 32)
    lengths = jnp.array([29, 5, 17])

    def read(kind):
        with tracing_for(replace(GPU, attention=kind)):
            return cached_forward.prefill_cache(MODEL, HALF, IDS, lengths, cache)[0]

    expected, found = read("reference"), read("cudnn")
    assert calls == [((3, 29, 3, 16), jnp.bfloat16, EXPECTED)] * CFG.n_layers
    np.testing.assert_allclose(found, expected, atol=1e-3)  # 0 measured


def step(**options):
    state = init_train_state(OptimizerConfig(), PARAMS)
    how = StepOptions(compute_dtype="bfloat16", **options)
    with tracing_for(GPU):
        return train_step(MODEL, OptimizerConfig(), state, IDS[None], IDS[None], options=how)


def test_a_step_calls_cudnn_if_the_options_say_so(calls):
    _, expected = step(attention="reference")
    assert not calls
    _, found = step(attention="cudnn")
    assert calls == [((3, 29, 3, 16), jnp.bfloat16, EXPECTED)] * CFG.n_layers
    assert abs(found.loss - expected.loss) < 1e-4  # 0 measured
    assert abs(found.gradient_norm / expected.gradient_norm - 1) < 1e-4  # 0 measured


def test_options_and_settings_are_checked():
    with pytest.raises(ValueError, match="attention must be one of auto, reference, cudnn"):
        StepOptions(attention="flash")
    with pytest.raises(ValueError, match="attention must be one of auto, reference, cudnn"):
        TrainSettings(attention="flash")
    with pytest.raises(ValueError, match="needs 16-bit numbers; add dtype bfloat16"):
        TrainSettings(attention="cudnn")
    with pytest.raises(ValueError, match="cannot drop values; leave drop_rate out"):
        TrainSettings(attention="cudnn", dtype="bfloat16", drop_rate=0.1)
    settings = TrainSettings(attention="cudnn", dtype="bfloat16")
    saved = settings.to_dict()
    assert TrainSettings.from_dict(saved) == settings
    del saved["attention"]  # a run that began before there was this setting
    assert TrainSettings.from_dict(saved) == replace(settings, attention="auto")
    assert cudnn_attention.current_target().attention == "auto"
