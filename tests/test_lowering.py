"""Every program is lowered for GPUs and TPUs, which need not be present."""

import jax
import jax.numpy as jnp
import pytest

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.decoding import programs, score, simple
from obscura_jax.decoding.controls import Controls
from obscura_jax.decoding.sampling import Sampling
from obscura_jax.decoding.state import Request, initial_state
from obscura_jax.nn.scan import stack_blocks
from obscura_jax.nn.target import Target, on_one_cpu, tracing_for
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loss import next_token_loss
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state, train_step

CFG = GPTConfig(
    vocab_size=101,
    context_length=13,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=False,
)
MODEL = GPTModel(CFG)
CONFIG = OptimizerConfig(clip_norm=1.0, warmup_steps=2, decay_steps=5)
IDS = jnp.zeros((2, 3, 7), jnp.int32)
# Outside the traced functions: ids are checked on the host.
CONTROLS = Controls({3: 2.0}, [5], repetition_penalty=1.2, min_new_tokens=2).arrays(3, 101)


def params():
    return gpt2_init(CFG, jax.random.key(0))


def half():
    return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params())


def step(change=lambda state: state, **options):
    def program():
        state = change(init_train_state(CONFIG, params()))
        how = StepOptions(grad_accum_steps=2, **options)
        return train_step(MODEL, CONFIG, state, IDS, IDS, jax.random.key(1), options=how)

    return program


def request():
    sampling = Sampling(temperature=[0, 1, 0.5], top_k=7, top_p=0.9, min_p=0.1).arrays(3, 101)
    keys = jax.random.split(jax.random.key(2), 3)
    return Request(jnp.array([5, 7, 2]), sampling, keys, jnp.full((3, 4), -1), CONTROLS)


def prefill():
    return programs.prefill(MODEL, half(), request(), IDS[0], 13, 13)


PROGRAMS = {
    "a step": step(),
    "a step, accumulated, in bfloat16": step(compute_dtype="bfloat16", logits_chunk=3),
    "a step, elementwise recomputed": step(remat="elementwise"),
    "a step over stacked blocks, recomputed": step(stack_blocks, remat="blocks"),
    "the loss": lambda: next_token_loss(MODEL, params(), IDS[0], IDS[0]),
    "prefill": prefill,
    "decode": lambda: programs.decode(MODEL, half(), request(), prefill(), jnp.array(6)),
    "slide": lambda: programs.slide(
        MODEL, half(), request(), initial_state(3, 16), jnp.array(9), IDS[0]
    ),
    "the course's loop": lambda: simple._greedy_loop.__wrapped__(MODEL, params(), IDS[0], 4, 13),
    "scores": lambda: score._log_probabilities.__wrapped__(MODEL, params(), IDS[0]),
}


def lowered(program, platform):
    """Return the lowered program as text."""
    with tracing_for(Target(platform)):
        traced = jax.jit(lambda: program()).trace()
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_lowered_for_every_platform(name, platform):
    assert "dot_general" in lowered(PROGRAMS[name], platform)


def test_a_program_that_only_a_cpu_can_run_is_refused():
    with pytest.raises(NotImplementedError, match="tpu"):
        lowered(lambda: jnp.linalg.eig(jnp.eye(3)), "tpu")


@pytest.mark.slow
def test_the_target_is_read_while_tracing():
    assert on_one_cpu()
    with tracing_for(Target("tpu")):
        assert not on_one_cpu()
        with tracing_for(Target("cpu")):
            assert on_one_cpu()
    assert on_one_cpu()
    for words, platforms in (("optimization_barrier", {"cpu"}), ("LayoutConstraint", {"tpu"})):
        has = {
            name for name in ("cpu", "cuda", "tpu") if words in lowered(PROGRAMS["decode"], name)
        }
        assert has == platforms


@pytest.mark.slow
def test_a_second_target_retraces_a_program_that_was_traced_before():
    """The target is part of the key of jit's caches, although it is not an argument."""
    decode = programs.DEFAULT_PROGRAMS.decode

    def barriers(platform):
        with tracing_for(Target(platform)):
            state = jax.eval_shape(prefill)
            traced = decode.trace(MODEL, half(), request(), state, jnp.array(6))
            return str(traced.jaxpr).count("optimization_barrier")

    assert barriers("cpu") > 0
    assert barriers("cuda") == 0
    assert barriers("cpu") > 0
    seen = []
    function = jax.jit(lambda x: seen.append(on_one_cpu()) or x)
    for platform in ("cpu", "cuda", "cpu", "cuda"):
        with tracing_for(Target(platform)):
            function(1.0)
    assert seen == [True, False]
