"""With `batch_invariant`, a row has the same bits alone and in any company."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import Controls, Generator, GPTModel, Sampling, generate
from obscura_jax.config import PRESETS
from obscura_jax.scale.generation import mesh_programs
from obscura_jax.scale.mesh import make_mesh
from tests.support.generation import CFG, KEY, MODEL, NEW, PARAMS, ROWS, prompts
from tests.support.rounds import rounds

pytestmark = pytest.mark.slow

DRAWN = Sampling(1.3, top_k=40, top_p=0.95)
CASES = rounds(200, 4000)
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def engines():
    return {d: Generator(MODEL, PARAMS, dtype=d, batch_invariant=True) for d in DTYPES}


def bits(out):
    return list(zip(out.tokens, out.logprobs, out.finish_reasons, strict=True))


@pytest.mark.parametrize("sampling", [Sampling(), DRAWN], ids=["greedy", "sampled"])
def test_the_tokens_are_those_of_generate(engines, sampling):
    settings = {"temperature": sampling.temperature, "top_k": sampling.top_k}
    want = generate(MODEL, PARAMS, ROWS, NEW, **settings, top_p=sampling.top_p, key=KEY)
    got = engines["float32"].generate(ROWS, NEW, sampling=sampling, key=KEY)
    assert got.tokens == want.tokens
    # measured: 6.9e-6 with JAX 0.10, 2.1e-5 with 0.12; see test_engine.py
    np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-4)


class Rows:
    """Random rows, each generated once alone, to compare with any company."""

    def __init__(self, engine, rng, count):
        self.engine, self.rng, self.count = engine, rng, count
        self.prompts = prompts(*rng.integers(1, 47, count), seed=int(rng.integers(1 << 30)))
        self.keys = jax.random.split(jax.random.key(int(rng.integers(1 << 30))), count)
        self.settings = Sampling(
            temperature=[float(t) for t in rng.choice([0.0, 0.7, 1.3], count)],
            top_k=[None if k == 0 else int(k) for k in rng.choice([0, 3, 40], count)],
            top_p=[float(p) for p in rng.choice([1.0, 0.9], count)],
            min_p=[float(m) for m in rng.choice([0.0, 0.05], count)],
        )
        self.stops = [[int(t)] for t in rng.integers(0, CFG.vocab_size, count)]
        self.alone = [bits(self.generate([row]))[0] for row in range(count)]

    def generate(self, rows, **options):
        def chosen(values):
            return [values[row] for row in rows]

        names = ("temperature", "top_k", "top_p", "min_p")
        sampling = Sampling(**{name: chosen(getattr(self.settings, name)) for name in names})
        return self.engine.generate(
            chosen(self.prompts),
            NEW,
            sampling=sampling,
            key=self.keys[jnp.asarray(rows)],
            stop_ids=chosen(self.stops),
            **options,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_rows_have_the_same_bits_in_random_company(engines, dtype):
    rng = np.random.default_rng(3)
    cases = 0
    while cases < CASES // 2:
        rows = Rows(engines[dtype], rng, 40)
        for _ in range(60):
            company = rng.choice(rows.count, rng.integers(1, 20)).tolist()
            for row, found in zip(company, bits(rows.generate(company)), strict=True):
                assert found == rows.alone[row]
            cases += len(company)


def test_the_comparison_of_bits_can_fail():
    """Without batch invariance, some log-probabilities differ in their last bits."""
    engine = Generator(MODEL, PARAMS)
    together = bits(engine.generate(ROWS, NEW))
    assert together != [bits(engine.generate([row], NEW))[0] for row in ROWS]


@pytest.mark.parametrize("dtype", DTYPES)
def test_streams_prefixes_samples_and_sliding_windows_keep_the_bits(engines, dtype):
    engine = engines[dtype]
    want = engine.generate(ROWS, NEW, sampling=DRAWN, key=KEY)
    chunks = engine.stream(ROWS, NEW, tokens_per_chunk=3, sampling=DRAWN, key=KEY)
    joined = [[token for ids in row for token in ids] for row in zip(*chunks, strict=True)]
    assert joined == want.tokens

    start = ROWS[2] + ROWS[3]
    for length in (3, 49):
        prefix = engine.prefix(start[:length])
        full = [start[:length] + row[:7] for row in ROWS]
        got = engine.generate([row[:7] for row in ROWS], 9, prefix=prefix)
        assert bits(got) == bits(engine.generate(full, 9))

    keys = jnp.stack([jax.random.fold_in(KEY, n) for _ in ROWS for n in range(3)])
    repeated = engine.generate([r for r in ROWS for _ in range(3)], NEW, sampling=DRAWN, key=keys)
    assert bits(engine.generate(ROWS, NEW, sampling=DRAWN, key=KEY, samples=3)) == bits(repeated)

    more = CFG.context_length - 20  # two of the rows slide, two do not
    together = engine.generate(ROWS, more, sliding_window=True)
    alone = [bits(engine.generate([row], more, sliding_window=True))[0] for row in ROWS]
    assert bits(together) == alone
    longest = [ROWS[2] * 2, ROWS[0]]  # one is longer than the context
    together = engine.generate(longest, 5, sliding_window=True)
    alone = [bits(engine.generate([row], 5, sliding_window=True))[0] for row in longest]
    assert bits(together) == alone


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_have_the_same_bits_in_any_company(engines, dtype):
    together = engines[dtype].score(ROWS)
    alone = [engines[dtype].score([row]) for row in ROWS]
    assert together.logprobs == [one.logprobs[0] for one in alone]
    np.testing.assert_allclose(
        together.perplexity,
        Generator(MODEL, PARAMS, dtype=dtype).score(ROWS).perplexity,
        rtol={"float32": 1e-5, "bfloat16": 0.05}[dtype],
    )


def test_controls_and_alternatives_have_the_same_bits_in_any_company(engines):
    controls = Controls(repetition_penalty=2.0, logit_bias={3: 5.0}, min_new_tokens=5)
    options = {"controls": controls, "top_logprobs": 4, "sampling": DRAWN, "key": KEY}
    together = engines["float32"].generate(ROWS, NEW, **options)
    alone = [engines["float32"].generate([row], NEW, **options) for row in ROWS]
    assert bits(together) == [bits(one)[0] for one in alone]
    assert together.top_logprobs == [one.top_logprobs[0] for one in alone]
    assert together.tokens != engines["float32"].generate(ROWS, NEW, sampling=DRAWN, key=KEY).tokens


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_keys_of_other_generators(engines, impl):
    key = jax.random.key(4, impl=impl)
    together = engines["float32"].generate(ROWS, NEW, sampling=DRAWN, key=key)
    alone = [engines["float32"].generate([row], NEW, sampling=DRAWN, key=key) for row in ROWS]
    assert bits(together) == [bits(one)[0] for one in alone]


@pytest.mark.parametrize("weights", ["as-given", "int8"])
def test_other_forms_of_the_weights(weights):
    engine = Generator(MODEL, PARAMS, weights=weights, batch_invariant=True)
    together = engine.generate(ROWS, NEW)
    assert bits(together) == [bits(engine.generate([row], NEW))[0] for row in ROWS]


def test_a_small_number_of_programs_serves_all(engines):
    engine = engines["float32"]
    engine.generate(ROWS[:1], NEW)
    before = engine.n_compilations()
    for rows in (ROWS, ROWS * 5, ROWS[1:2]):
        engine.generate(rows, NEW, sampling=DRAWN, key=KEY)
    assert engine.n_compilations() == before


def test_programs_of_others_are_refused():
    mesh = mesh_programs(make_mesh({"data": 1}))
    with pytest.raises(ValueError, match="batch_invariant runs programs of its own on one device"):
        Generator(MODEL, PARAMS, batch_invariant=True, programs=mesh)


@pytest.mark.gpt2_124m
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_the_124m_model_have_the_same_bits_in_any_company(dtype):
    cfg = PRESETS["gpt2"]
    model = GPTModel(cfg)
    params = jax.jit(lambda: model.init(jax.random.key(0), [[0]]))()["params"]
    engine = Generator(model, params, dtype=dtype, batch_invariant=True)
    rng = np.random.default_rng(8)
    rows = [rng.integers(0, cfg.vocab_size, n).tolist() for n in (3, 130, 17, 64, 9)]
    options = {"sampling": DRAWN, "key": KEY}
    alone = [bits(engine.generate([row], 6, **options))[0] for row in rows]
    cases = 0
    while cases < 50:
        company = rng.choice(len(rows), rng.integers(2, 9)).tolist()
        out = bits(engine.generate([rows[n] for n in company], 6, **options))
        assert out == [alone[n] for n in company]
        cases += len(company)
