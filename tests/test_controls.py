"""Penalties, biases, bans and a minimum length: against slow NumPy, in any batch, without cost."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from obscura_jax import Controls, generate
from obscura_jax.decoding.controls import History, apply_controls
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.request import plan_generation
from obscura_jax.decoding.run import run_plan
from obscura_jax.decoding.stream import stream
from tests.support import controls_oracle as oracle
from tests.support.controls_oracle import STEPS, Row, controlled, generate_slowly
from tests.support.generation import (
    CFG,
    KEY,
    MODEL,
    NEW,
    PARAMS,
    ROWS,
    SAMPLED,
    joined,
    options,
    prompts,
)
from tests.support.jaxprs import primitives
from tests.support.rounds import rounds

V = CFG.vocab_size
LOWEST = float(np.finfo(np.float32).min)
NAMES = (
    "logit_bias",
    "banned_ids",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_new_tokens",
)


def of_rows(rows: list[Row]) -> dict:
    """Return the arguments of `generate` for rows of different controls."""
    return {name: [getattr(row, name) for row in rows] for name in (*NAMES, "stop_ids")}


# The function on arrays.

# Multiples of powers of two, for which every order of float32 operations gives the same result.
WIDTH = 11
some_logits = st.lists(
    st.lists(st.integers(-64, 64).map(lambda x: x / 16), min_size=WIDTH, max_size=WIDTH),
    min_size=3,
    max_size=3,
)
some_ids = st.lists(st.integers(0, WIDTH - 1), max_size=6)
eighths = st.none() | st.integers(-16, 16).map(lambda x: x / 8)
some_row = st.builds(
    Row,
    prompt=st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=6),
    stop_ids=some_ids.map(tuple),
    logit_bias=st.none() | st.dictionaries(st.integers(0, WIDTH - 1), st.integers(-9, 9)),
    banned_ids=st.lists(st.integers(0, WIDTH - 1), max_size=4).map(tuple),
    repetition_penalty=st.none() | st.sampled_from([0.5, 1.0, 1.25, 2.0]),
    frequency_penalty=eighths,
    presence_penalty=eighths,
    min_new_tokens=st.none() | st.integers(0, 6),
)
_apply = jax.jit(apply_controls)


def padded(rows, width, fill):
    return jnp.asarray(np.array([[*row, *[fill] * (width - len(row))] for row in rows], np.int32))


def applied(logits, rows: list[Row], vocab_size: int = WIDTH) -> np.ndarray:
    """Return the result of `apply_controls`; rows have equally many new tokens."""
    arguments = of_rows(rows)
    stop_ids = arguments.pop("stop_ids")
    (sampled,) = {len(row.new) for row in rows}
    history = History(
        padded([row.prompt for row in rows], 8, 3),  # padding is an id that is not seen
        jnp.asarray([len(row.prompt) for row in rows]),
        padded([row.new for row in rows], 8, 4),
        jnp.asarray(sampled),
    )
    arrays = Controls(**arguments).arrays(len(rows), vocab_size)
    return np.asarray(_apply(jnp.asarray(logits), arrays, padded(stop_ids, 8, -1), history))


@pytest.mark.slow
@hypothesis_settings(max_examples=rounds(100, 2000), deadline=None)
@given(some_logits, st.lists(some_row, min_size=3, max_size=3), st.data())
def test_logits_are_those_of_slow_numpy(logits, rows, data):
    length = data.draw(st.integers(0, 6))
    for row in rows:
        ids = st.integers(0, WIDTH - 1)
        row.new = data.draw(st.lists(ids, min_size=length, max_size=length))
    logits = np.array(logits, np.float32)
    want = [controlled(own, row) for own, row in zip(logits, rows, strict=True)]
    # XLA may round a product and a sum once, where NumPy rounds twice: 6.0e-8 of a product was
    # measured, and a product is at most 100 times a logit.
    largest = 100 * max(1, np.abs(logits[np.isfinite(logits)]).max(initial=0))
    np.testing.assert_allclose(applied(logits, rows), want, rtol=0, atol=1.2e-7 * largest)


LOGITS = np.array([[2.0, -1, 0.5, 3, -2, 1, 0, -0.5, 1.5, -3, 2.5]] * 3, np.float32)
EVERYTHING = {
    "stop_ids": (3, 10),
    "logit_bias": {0: -3.0, 1: 4.0, 6: 0.5},
    "banned_ids": (8,),
    "repetition_penalty": 1.25,
    "frequency_penalty": 0.25,
    "presence_penalty": 0.5,
    "min_new_tokens": 5,
}
BUSY = Row([0, 3, 3, 5], [1, 5, 1, 9], **EVERYTHING)


def test_each_control_changes_the_logits_that_it_should():
    def changes(**given):
        row = Row([0, 3, 3, 5], [1, 5, 1, 9], stop_ids=(3, 10), **given)
        new = applied(LOGITS, [row] * 3)[0]
        return {n: float(x) for n, x in enumerate(new) if x != LOGITS[0, n]}

    out = -np.inf
    assert changes() == {}
    assert changes(logit_bias={0: -3.0, 6: 0.5}) == {0: -1.0, 6: 0.5}
    assert changes(banned_ids=(8, 2)) == {8: out, 2: out}
    assert changes(repetition_penalty=2) == {0: 1.0, 1: -2.0, 3: 1.5, 5: 0.5, 9: -6.0}
    assert changes(frequency_penalty=0.5) == {1: -2.0, 5: 0.5, 9: -3.5}
    assert changes(presence_penalty=0.5) == {1: -1.5, 5: 0.5, 9: -3.5}
    assert changes(min_new_tokens=5) == {3: out, 10: out}
    assert changes(min_new_tokens=4) == {}


def test_the_order_is_fixed():
    """A biased logit of -1 is multiplied, not divided, by the repetition penalty."""
    row = Row([0], logit_bias={0: -3.0}, repetition_penalty=2)
    assert applied(LOGITS, [row] * 3)[0, 0] == -2.0
    both = Row([0], logit_bias={2: 5.0}, banned_ids=(2,))
    assert applied(LOGITS, [both] * 3)[0, 2] == -np.inf


WRONG_STEPS = {
    "a bias after the penalty": {"bias": lambda x, row: x, "length": oracle.add_bias},
    "no ban": {"ban": lambda x, row: x},
    "repetition of new tokens only": {
        "repetition": lambda x, row: oracle.penalize_repetition(
            x, Row(**(vars(row) | {"prompt": []}))
        )
    },
    "frequency with the prompt": {
        "frequency": lambda x, row: oracle.penalize_frequency(
            x, Row(**(vars(row) | {"new": row.prompt + row.new}))
        )
    },
    "presence with the prompt": {
        "presence": lambda x, row: oracle.penalize_presence(
            x, Row(**(vars(row) | {"new": row.prompt + row.new}))
        )
    },
    "frequency once": {
        "frequency": lambda x, row: oracle.penalize_frequency(
            x, Row(**(vars(row) | {"new": sorted(set(row.new))}))
        )
    },
    "a length of one less": {
        "length": lambda x, row: oracle.require_length(
            x, Row(**(vars(row) | {"min_new_tokens": (row.min_new_tokens or 1) - 1}))
        )
    },
}


@pytest.mark.parametrize("wrong", WRONG_STEPS.values(), ids=WRONG_STEPS)
def test_a_wrong_control_is_noticed(wrong):
    got = applied(LOGITS, [BUSY] * 3)[0]
    np.testing.assert_array_equal(got, controlled(LOGITS[0], BUSY))
    with pytest.raises(AssertionError):
        np.testing.assert_array_equal(got, controlled(LOGITS[0], BUSY, STEPS | wrong))


def test_work_that_no_row_needs_is_in_a_branch():
    arrays = Controls().arrays(3, WIDTH)
    history = History(*(jnp.ones((3, 8), jnp.int32), jnp.ones(3, jnp.int32)) * 2)
    history = history._replace(n_sampled=jnp.asarray(2))
    jaxpr = jax.make_jaxpr(apply_controls)(LOGITS, arrays, jnp.full((3, 8), -1), history).jaxpr
    assert not {"scatter", "scatter-add", "div", "mul"} & primitives(jaxpr, into_branches=False)
    assert {"scatter-add", "div", "mul"} <= primitives(jaxpr, into_branches=True)
    unused = [Row([1]), Row([2], repetition_penalty=1, frequency_penalty=0, presence_penalty=0)]
    assert Controls(**{name: of_rows(unused)[name] for name in NAMES}).arrays(
        2, V
    ).active_until.tolist() == [0, 0]
    ends = Controls(min_new_tokens=[0, 7], presence_penalty=[0.1, None]).arrays(2, V)
    assert ends.active_until.tolist() == [2**31 - 1, 7]


# Generation.


def random_row(rng: np.random.Generator, prompt: list[int]) -> Row:
    """Return a row in which each control is on with probability 1/2."""

    def maybe(value, off=None):
        return value if rng.random() < 0.5 else off

    return Row(
        prompt,
        stop_ids=tuple(maybe(rng.integers(0, V, 6).tolist(), [])),
        logit_bias=maybe(
            dict(zip(rng.integers(0, V, 5).tolist(), rng.normal(0, 3, 5).tolist(), strict=True))
        ),
        banned_ids=tuple(maybe(rng.integers(0, V, 11).tolist(), [])),
        repetition_penalty=maybe(float(rng.uniform(0.7, 2))),
        frequency_penalty=maybe(float(rng.normal())),
        presence_penalty=maybe(float(rng.normal())),
        min_new_tokens=maybe(int(rng.integers(1, 12))),
    )


def random_batch(seed: int, prompts: list[list[int]]) -> tuple[list[Row], dict]:
    """Return rows with their own controls, and sampling settings; some rows are greedy."""
    rng = np.random.default_rng(seed)
    rows = [random_row(rng, prompt) for prompt in prompts]
    temperature = [0.0 if rng.random() < 0.5 else 1.3 for _ in rows]
    return rows, {"temperature": temperature, "top_k": [None, 40, 7, 20], "top_p": [0.9] * 4}


def slow_tokens(rows, sampling, count, steps=STEPS):
    columns = [{name: value[n] for name, value in sampling.items()} for n in range(len(rows))]
    return [
        generate_slowly(row, count, steps, **own) for row, own in zip(rows, columns, strict=True)
    ]


def fast_tokens(rows, sampling, count, **more):
    prompts_ = [row.prompt for row in rows]
    how = of_rows(rows) | sampling | {"key": KEY} | more
    return generate(MODEL, PARAMS, prompts_, count, **how).tokens


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(rounds(4, 60)))
def test_tokens_are_those_of_slow_numpy(seed):
    rows, sampling = random_batch(seed, prompts(5, 1, 40, 9, seed=seed))
    assert fast_tokens(rows, sampling, NEW) == slow_tokens(rows, sampling, NEW)


@pytest.mark.slow
def test_tokens_of_a_wrong_control_are_noticed():
    rows, sampling = random_batch(3, prompts(5, 1, 40, 9, seed=3))
    for n, row in enumerate(rows):
        vars(row).update(
            logit_bias=dict.fromkeys(range(9), 3.0),
            banned_ids=(30, 31, 35),
            repetition_penalty=1.5,
            frequency_penalty=-0.5,  # so that tokens occur several times
            presence_penalty=0.7,
            stop_ids=tuple(range(0, V, 2)) * (n // 2),
            min_new_tokens=6,
        )
    got = fast_tokens(rows, sampling, NEW)
    assert got == slow_tokens(rows, sampling, NEW)
    for name, wrong in WRONG_STEPS.items():
        assert got != slow_tokens(rows, sampling, NEW, STEPS | wrong), name


@pytest.mark.slow
def test_a_stream_has_the_tokens_of_generate():
    rows, sampling = random_batch(5, ROWS)
    want = fast_tokens(rows, sampling, NEW)
    how = of_rows(rows) | sampling | {"key": KEY}
    for size in (1, 7):
        chunks = stream(MODEL, PARAMS, ROWS, NEW, options(**how), tokens_per_chunk=size)
        assert joined(chunks) == want
    assert want != generate(MODEL, PARAMS, ROWS, NEW, stop_ids=how["stop_ids"]).tokens


@pytest.mark.slow
def test_sliding_has_the_tokens_of_slow_numpy():
    """The first tokens have a cache, the others none; tokens that left the window still count."""
    rows, sampling = random_batch(8, prompts(64, 3, 40, 9))
    for row in rows:
        row.frequency_penalty = 0.4
        row.stop_ids = ()
    got = fast_tokens(rows, sampling, 30, sliding_window=True)
    assert got == slow_tokens(rows, sampling, 30)
    forgets = {
        "repetition": lambda x, row: oracle.penalize_repetition(
            x, Row(**(vars(row) | {"prompt": row.prompt[-10:]}))
        )
    }
    rows[0].repetition_penalty = 1.5
    assert (
        fast_tokens(rows, sampling, 30, sliding_window=True)[0]
        != slow_tokens(
            rows[:1], {name: value[:1] for name, value in sampling.items()}, 30, STEPS | forgets
        )[0]
    )


@pytest.mark.slow
def test_a_row_has_the_same_tokens_alone():
    rows, sampling = random_batch(9, ROWS)
    together = fast_tokens(rows, sampling, NEW)
    for n, row in enumerate(rows):
        own = {name: value[n : n + 1] for name, value in sampling.items()}
        assert fast_tokens([row], own, NEW) == together[n : n + 1]


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_without_controls_nothing_changes(keywords):
    """Tokens and log-probabilities are bit-equal to those of programs without controls."""
    plan = plan_generation(CFG, ROWS, NEW, options(**keywords))
    without = replace(plan, request=plan.request._replace(controls=None))
    *_, one = run_plan(MODEL, PARAMS, plan, DEFAULT_PROGRAMS, 60)
    *_, other = run_plan(MODEL, PARAMS, without, DEFAULT_PROGRAMS, 60)
    np.testing.assert_array_equal(one.tokens[:, :NEW], other.tokens[:, :NEW])
    np.testing.assert_array_equal(one.logprobs[:, :NEW], other.logprobs[:, :NEW])
    plan = plan_generation(CFG, ROWS, NEW, options(presence_penalty=2.0, **keywords))
    *_, changed = run_plan(MODEL, PARAMS, plan, DEFAULT_PROGRAMS, 60)
    assert (one.tokens[:, :NEW] != changed.tokens[:, :NEW]).any()


@pytest.mark.slow
def test_no_control_compiles_a_program():
    generate(MODEL, PARAMS, ROWS, NEW)
    before = DEFAULT_PROGRAMS.n_compilations()
    for seed in range(3):
        rows, sampling = random_batch(seed, ROWS)
        fast_tokens(rows, sampling, NEW - seed)
    generate(MODEL, PARAMS, ROWS, NEW, banned_ids=list(range(16)), min_new_tokens=3)
    assert DEFAULT_PROGRAMS.n_compilations() == before
    generate(MODEL, PARAMS, ROWS, NEW, banned_ids=list(range(17)))  # the next bucket
    assert DEFAULT_PROGRAMS.n_compilations() == before + 2


def test_log_probabilities_remain_those_of_the_model():
    out = generate(MODEL, PARAMS, ROWS, NEW, repetition_penalty=1.7, logit_bias={3: 4.0})
    for row, tokens, logprobs in zip(ROWS, out.tokens, out.logprobs, strict=True):
        ids = row + tokens
        tables = [oracle.next_logits(ids[:n]) for n in range(len(row), len(ids))]
        want = [jax.nn.log_softmax(x)[token] for x, token in zip(tables, tokens, strict=True)]
        np.testing.assert_allclose(logprobs, want, atol=5e-6)  # measured 1.4e-6
        biased = [x + 4.0 * (np.arange(V) == 3) for x in tables]
        wrong = [jax.nn.log_softmax(x)[token] for x, token in zip(biased, tokens, strict=True)]
        assert np.abs(np.subtract(logprobs, wrong)).max() > 0.01


def test_stop_ids_wait_for_the_minimum_length():
    free = generate(MODEL, PARAMS, ROWS, NEW).tokens
    stop = [row[2] for row in free]
    ended = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=stop)
    assert min(map(len, ended.tokens)) < 5
    later = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=stop, min_new_tokens=[5, 9, 1, NEW])
    assert [len(row) >= n for row, n in zip(later.tokens, (5, 9, 1, NEW), strict=True)] == [
        True
    ] * 4
    assert later.finish_reasons[3] == "length"


# Bad input.

RANGE = "a number from -100 to 100"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"repetition_penalty": float("nan")},
            "repetition_penalty must be a number from 0.01 to 100, got nan",
        ),
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.01 to 100, got 0"),
        (
            {"repetition_penalty": [1, -1]},
            "repetition_penalty of row 1 must be a number from 0.01 to 100, got -1",
        ),
        (
            {"repetition_penalty": [1]},
            "repetition_penalty lists 1 values for 2 rows; give one per row",
        ),
        ({"frequency_penalty": float("nan")}, f"frequency_penalty must be {RANGE}, got nan"),
        ({"frequency_penalty": 101}, f"frequency_penalty must be {RANGE}, got 101"),
        ({"presence_penalty": "1"}, f"presence_penalty must be {RANGE}, got '1'"),
        ({"presence_penalty": float("-inf")}, f"presence_penalty must be {RANGE}, got -inf"),
        ({"presence_penalty": True}, f"presence_penalty must be {RANGE}, got True"),
        ({"logit_bias": {61: 1.0}}, "logit_bias: token id 61 is outside the vocabulary, 0..60"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: token id -1 is outside the vocabulary, 0..60"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: token ids must be integers, got <U1"),
        ({"logit_bias": {5: float("nan")}}, f"logit_bias of token 5 must be {RANGE}, got nan"),
        ({"logit_bias": {5: None}}, f"logit_bias of token 5 must be {RANGE}, got None"),
        (
            {"logit_bias": [None, {5: -200}]},
            f"logit_bias of row 1 of token 5 must be {RANGE}, got -200",
        ),
        ({"logit_bias": [None]}, "logit_bias lists 1 values for 2 rows; give one per row"),
        ({"logit_bias": [3, 4]}, "logit_bias of row 0 must map token ids to numbers, got 3"),
        ({"logit_bias": 5}, "logit_bias must map token ids to numbers, got 5"),
        ({"banned_ids": [61]}, "banned_ids: token id 61 is outside the vocabulary, 0..60"),
        ({"banned_ids": 4}, "banned_ids must be a list of ids, or one list per row; got 4"),
        (
            {"banned_ids": [1, [2]]},
            "banned_ids must be a list of ids, or one list per row; got [1, [2]]",
        ),
        ({"banned_ids": [[1]]}, "banned_ids has 1 lists for 2 rows; give one per row"),
        ({"banned_ids": list(range(V))}, "row 0 bans every token; leave at least one to sample"),
        (
            {"banned_ids": [[], list(range(1, V))], "stop_ids": [0], "min_new_tokens": 2},
            "row 1 bans every token; leave at least one to sample",
        ),
        ({"min_new_tokens": -1}, "min_new_tokens must be a whole number of at least 0, got -1"),
        ({"min_new_tokens": 1.5}, "min_new_tokens must be a whole number of at least 0, got 1.5"),
        (
            {"min_new_tokens": [1, 4]},
            "min_new_tokens=4 exceeds the maximum of 3 new tokens; lower it, or raise "
            "max_new_tokens",
        ),
        ({"top_logprobs": 21}, "top_logprobs must be a whole number from 0 to 20, got 21"),
        ({"top_logprobs": -1}, "top_logprobs must be a whole number from 0 to 20, got -1"),
        (
            {"top_logprobs": [1, 0.5]},
            "top_logprobs of row 1 must be a whole number from 0 to 20, got 0.5",
        ),
    ],
)
def test_bad_input_is_named(given, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        generate(MODEL, PARAMS, [[1, 2], [3]], 3, **given)
    assert str(caught.value) == message


@pytest.mark.slow
def test_the_last_token_may_be_left():
    only = [n for n in range(V) if n != 17]
    for settings in ({}, SAMPLED):
        out = generate(MODEL, PARAMS, ROWS, 3, banned_ids=only, **settings)
        assert out.tokens == [[17] * 3] * 4
    most = dict.fromkeys(only, -100)
    assert generate(MODEL, PARAMS, ROWS, 3, logit_bias=most).tokens == [[17] * 3] * 4


def test_numpy_values_are_accepted():
    given = {
        "repetition_penalty": np.array([1.5, 1.0]),
        "presence_penalty": jnp.asarray(0.5),
        "logit_bias": {np.int64(3): np.float32(2)},
        "banned_ids": np.array([4, 5]),
        "min_new_tokens": np.int64(2),
    }
    arrays = Controls(**given).arrays(2, V)
    assert arrays.repetition_penalty.tolist() == [1.5, 1.0]
    assert arrays.presence_penalty.tolist() == [0.5, 0.5]
    assert arrays.bias_ids[0, :4].tolist() == [3, 4, 5, V]
    assert arrays.bias[1, :3].tolist() == [2.0, LOWEST, LOWEST]
    assert arrays.min_new_tokens.tolist() == [2, 2]
    assert set(Controls(**given).used()) == set(given)
    assert Controls(logit_bias={}, banned_ids=[]).used() == []
