"""Sampling: every filter and the whole chain against slow NumPy, row by row, in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import jaxtyped

from obscura_jax.decoding import filters, sampling
from tests.support.jaxprs import primitives

V = 53
ROWS = 3
# So close to a boundary, relative, a token may fall on either side.
SLACK = 2e-6

scale_by_temperature = jax.jit(filters.scale_by_temperature)
keep_top_k = jax.jit(filters.keep_top_k)
keep_top_p = jax.jit(filters.keep_top_p)
keep_min_p = jax.jit(filters.keep_min_p)
filter_logits = jax.jit(sampling.filter_logits)
greedy = jax.jit(sampling.greedy)
log_probability = jax.jit(sampling.log_probability)
sample = jax.jit(sampling.sample)


def arrays(rows, vocab_size, **given):
    return sampling.Sampling(**given).arrays(rows, vocab_size)


def f32(*values):
    return jnp.asarray(np.array(values, np.float32))


def i32(*values):
    return jnp.asarray(np.array(values, np.int32))


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


def keys_of(key_data):
    """Keys that the check for keys used twice takes for new."""
    return jax.random.wrap_key_data(jnp.asarray(key_data, jnp.uint32))


def kept(filtered):
    return ~np.isneginf(np.asarray(filtered))


# The slow, obvious version: one row, float64, sorting and loops. A row of -inf has been excluded.


def slow_probabilities(row):
    row = [float(x) for x in row]
    best = max(row)
    e = [np.exp(x - best) for x in row]
    return np.array(e) / sum(e)


def slow_keep(row, threshold):
    return np.array([x if x >= threshold else -np.inf for x in row])


def slow_top_k(row, k):
    return slow_keep(row, sorted(row, reverse=True)[k - 1])


def slow_top_p(row, p):
    if p == 1:
        return np.array(row)
    probabilities, reached = slow_probabilities(row), 0.0
    for token in sorted(range(len(row)), key=lambda i: -row[i]):
        reached += probabilities[token]
        if reached >= p:
            break
    return slow_keep(row, row[token])


def slow_min_p(row, m):
    probabilities = slow_probabilities(row)
    best = max(probabilities)
    return np.array(
        [x if q >= m * best else -np.inf for x, q in zip(row, probabilities, strict=True)]
    )


def slow_temperature(row, t):
    return np.array(row) / t if t > 0 else np.array(row)


def slow_chain(row, t, k, p, m):
    return slow_min_p(slow_top_p(slow_top_k(slow_temperature(row, t), k), p), m)


def slow_log_probability(row, token):
    row = np.asarray(row, np.float64)
    return row[token] - row.max() - np.log(sum(np.exp(row - row.max())))


def random_logits(vocab_size=V, seed=0, scale=3.0):
    rng = np.random.default_rng(seed)
    return (scale * rng.normal(size=(ROWS, vocab_size))).astype(np.float32)


def one_hot(vocab_size, low, high):
    rows = np.full((ROWS, vocab_size), low, np.float32)
    rows[np.arange(ROWS), [vocab_size - 1, 0, 7]] = high
    return rows


def cases():
    for vocab_size in (V, 211):
        normal = random_logits(vocab_size)
        yield f"normal-{vocab_size}", normal
        yield f"ties-{vocab_size}", np.round(normal)  # about 15 values: every boundary is a tie
        yield f"equal-{vocab_size}", np.full((ROWS, vocab_size), -1.25, np.float32)
        yield f"one-hot-{vocab_size}", one_hot(vocab_size, 0, 1)
        yield f"extreme-{vocab_size}", one_hot(vocab_size, -1e4, 1e4)
        close = np.float32(1) + np.arange(vocab_size, dtype=np.float32) * np.float32(2**-23)
        yield f"close-{vocab_size}", np.stack([close, close[::-1], np.roll(close, 19)])
        yield f"far-{vocab_size}", np.round(normal) + np.float32(1e4)
        yield f"zeros-{vocab_size}", np.where(normal > 0, np.float32(-0.0), np.float32(0.0))


CASES = dict(cases())
each_case = pytest.mark.parametrize("logits", CASES.values(), ids=CASES.keys())


def moved(p, by):
    """A p that is a little off; 1 is not a boundary but keeps everything."""
    return p if p == 1 else p * (1 + by)


def assert_between(ours, lower, upper):
    """Kept at least what the stricter oracle keeps, and at most what the laxer one does."""
    ours, lower, upper = kept(ours), kept(lower), kept(upper)
    assert (lower <= ours).all()
    assert (ours <= upper).all()


# Filters


@each_case
def test_top_k_matches_the_slow_version(logits):
    vocab_size = logits.shape[1]
    for ks in [(1, 2, 3), (5, 17, vocab_size - 1), (vocab_size, 40, 1)]:
        want = [slow_top_k(row, k) for row, k in zip(logits, ks, strict=True)]
        np.testing.assert_array_equal(keep_top_k(logits, i32(*ks)), want)


@pytest.mark.parametrize("ks", [(127, 128, 1), (128, 129, 1009), (500, 1, 1008)])
@pytest.mark.parametrize("ties", [False, True])
def test_top_k_by_prefix_and_by_search_are_equal(ks, ties):
    """Up to 128 the threshold is read off a prefix, above it is searched for."""
    logits = random_logits(1009)
    logits = np.round(4 * logits) if ties else logits
    want = [slow_top_k(row, k) for row, k in zip(logits, ks, strict=True)]
    np.testing.assert_array_equal(keep_top_k(logits, i32(*ks)), want)


def test_top_k_keeps_ties():
    logits = np.array([[2, 1, 1, 1, 0], [2, 2, 2, 1, 0], [0, 1, 2, 3, 4]], np.float32)
    counts = kept(keep_top_k(logits, i32(2, 1, 2))).sum(axis=1)
    assert counts.tolist() == [4, 3, 2]
    without_ties = jax.lax.top_k(logits[:1], 2)[0].shape[1]
    assert without_ties != counts[0]


@each_case
def test_top_p_matches_the_slow_version(logits):
    for ps in [(0.1, 0.5, 0.9), (0.999, 0.3, 1.0), (1e-6, 0.75, 0.99)]:
        ours = keep_top_p(logits, f32(*ps))
        lower, upper = (
            [
                slow_top_p(row, moved(p, by))
                for row, p in zip(logits, f32(*ps).tolist(), strict=True)
            ]
            for by in (-SLACK, SLACK)
        )
        assert_between(ours, lower, upper)
        np.testing.assert_array_equal(np.where(kept(ours), logits, -np.inf), ours)
        # The slack is not what carries the test: no boundary of these cases falls within it.
        assert (kept(lower) == kept(upper)).all()


def test_top_p_includes_the_token_that_crosses():
    logits = np.log(np.array([[0.15, 0.5, 0.05, 0.3]] * ROWS, np.float32))
    counts = kept(keep_top_p(logits, f32(0.4, 0.6, 0.9))).sum(axis=1)
    assert counts.tolist() == [1, 2, 3]
    counts = kept(keep_top_p(logits, f32(0.94, 0.96, 0.001))).sum(axis=1)
    assert counts.tolist() == [3, 4, 1]


def test_top_p_stops_at_the_token_that_reaches_it_exactly():
    logits = np.array([[1, 1, -200, -200, -300]] * ROWS, np.float32)
    counts = kept(keep_top_p(logits, f32(0.5, 0.99, 0.9999999))).sum(axis=1)
    assert counts.tolist() == [2, 2, 2]


def test_top_p_keeps_ties_at_the_boundary():
    logits = np.array([[3, 1, 1, 1, -9]] * ROWS, np.float32)
    first = slow_probabilities(logits[0])[0]
    counts = kept(keep_top_p(logits, f32(first - 0.01, first + 0.01, 0.999))).sum(axis=1)
    assert counts.tolist() == [1, 4, 4]


@each_case
def test_min_p_matches_the_slow_version(logits):
    for ms in [(0.03, 0.2, 0.55), (0.0, 0.97, 1e-5)]:
        ours = keep_min_p(logits, f32(*ms))
        ms = f32(*ms).tolist()
        lower = [slow_min_p(row, m * (1 + SLACK)) for row, m in zip(logits, ms, strict=True)]
        upper = [slow_min_p(row, m * (1 - SLACK)) for row, m in zip(logits, ms, strict=True)]
        assert_between(ours, lower, upper)
        np.testing.assert_array_equal(np.where(kept(ours), logits, -np.inf), ours)
        assert (kept(lower) == kept(upper)).all()


def test_min_p_keeps_a_token_at_the_boundary():
    logits = np.log(np.array([[0.5, 0.25, 0.125, 0.125]] * ROWS, np.float32))
    counts = kept(keep_min_p(logits, f32(0.5, 0.25, 0.51))).sum(axis=1)
    assert counts.tolist() == [2, 4, 1]


@each_case
def test_temperature_divides(logits):
    ours = np.asarray(scale_by_temperature(logits, f32(0.0, 0.7, 3.0)), np.float64)
    np.testing.assert_array_equal(ours[0], logits[0])
    for row, scaled, t in zip(logits[1:], ours[1:], f32(0.7, 3.0).tolist(), strict=True):
        want = slow_temperature(row.astype(np.float64), t)
        np.testing.assert_allclose(scaled, want - want.max(), rtol=5e-7)  # measured 1.2e-7
        if want.min() < want.max():
            with pytest.raises(AssertionError):
                np.testing.assert_allclose(scaled * 1.000001, want - want.max(), rtol=5e-7)


def test_no_temperature_overflows():
    logits = np.array([[1e4, 1e4, 9999, -1e4]] * ROWS, np.float32)
    scaled = np.asarray(scale_by_temperature(logits, f32(2e-38, 0.01, 3e38)))
    assert (scaled[:, :2] == 0).all()
    assert (scaled <= 0).all()
    assert (scaled[0, 2:] < -1e37).all()
    assert (scaled[2] > -1e-30).all()


@each_case
def test_filters_that_are_off_are_the_identity(logits):
    vocab_size = logits.shape[1]
    for filtered in (
        scale_by_temperature(logits, f32(0, 0, 0)),
        keep_top_k(logits, i32(*[vocab_size] * ROWS)),
        keep_top_p(logits, f32(1, 1, 1)),
        keep_min_p(logits, f32(0, 0, 0)),
        filter_logits(logits, arrays(ROWS, vocab_size)),
    ):
        np.testing.assert_array_equal(np.asarray(filtered).view(np.int32), logits.view(np.int32))
    on_elsewhere = keep_top_p(keep_top_k(logits, i32(1, vocab_size, 1)), f32(0.1, 1, 0.1))
    np.testing.assert_array_equal(on_elsewhere[1], logits[1])
    if not (logits == logits[:, :1]).all():
        assert not kept(on_elsewhere)[0].all()


# The chain

SETTINGS = [
    {"temperature": [0.7, 1.3, 2.0], "top_k": [40, 9, 3], "top_p": [0.91, 0.6, 0.8], "min_p": 0.02},
    {"temperature": [1.0, 0.0, 0.3], "top_k": [5, None, 1], "top_p": 0.95, "min_p": [0, 0.1, None]},
    {"temperature": 1.7, "top_p": [0.5, None, 0.99], "min_p": [0.3, 0.03, 0.0]},
]


def columns(settings):
    return zip(*(np.asarray(column).tolist() for column in settings), strict=True)


@pytest.mark.parametrize("given_settings", SETTINGS)
@each_case
def test_all_filters_and_the_sample_match_the_slow_version(logits, given_settings):
    vocab_size = logits.shape[1]
    settings = arrays(ROWS, vocab_size, **given_settings)
    ours = filter_logits(logits, settings)
    wide = [row.astype(np.float64) for row in logits]
    lower, upper = (
        [
            slow_chain(row, t, k, moved(p, -slack), m * (1 + slack))
            for row, (t, k, p, m) in zip(wide, columns(settings), strict=True)
        ]
        for slack in (SLACK, -SLACK)
    )
    assert_between(ours, lower, upper)
    assert (kept(lower) == kept(upper)).all()

    noise = np.stack([jax.random.gumbel(key, (vocab_size,), jnp.float32) for key in keys(ROWS)])
    want = [
        np.argmax(row if t == 0 else filtered + g)
        for row, filtered, g, (t, *_) in zip(wide, lower, noise, columns(settings), strict=True)
    ]
    tokens = sample(logits, settings, keys(ROWS))
    assert tokens.dtype == jnp.int32
    assert tokens.tolist() == want


def test_the_order_is_temperature_top_k_top_p_min_p():
    """A row on which every other order leaves other tokens, but for top-k first: it only ranks."""
    steps = {
        "temperature": (slow_temperature, 2.0),
        "top_k": (slow_top_k, 6),
        "top_p": (slow_top_p, 0.7),
        "min_p": (slow_min_p, 0.3),
    }
    logits = np.log([0.46, 0.16, 0.15, 0.08, 0.06, 0.04, 0.03, 0.03])
    settings = arrays(1, 8, **{name: value for name, (_, value) in steps.items()})
    ours = kept(filter_logits(logits[None].astype(np.float32), settings))[0].tolist()
    same = []
    for order in itertools.permutations(steps):
        row = logits
        for name in order:
            step, value = steps[name]
            row = step(row, value)
        if kept(row).tolist() == ours:
            same.append(order)
    assert same == [tuple(steps), ("top_k", "temperature", "top_p", "min_p")]


@pytest.mark.slow
@pytest.mark.parametrize("given_settings", SETTINGS)
@pytest.mark.parametrize("vocab_size", [V, 1009])
def test_a_row_gets_the_same_token_alone(vocab_size, given_settings):
    logits = random_logits(vocab_size, seed=5)
    settings = arrays(ROWS, vocab_size, **given_settings)
    together = sample(logits, settings, keys(ROWS))
    filtered = filter_logits(logits, settings)
    key_data = np.asarray(jax.random.key_data(keys(ROWS)))
    backwards = sampling.SamplingArrays(*(column[::-1] for column in settings))
    swapped = sample(logits[::-1], backwards, keys_of(key_data[::-1]))
    assert swapped.tolist() == together.tolist()[::-1]
    for row in range(ROWS):
        only = slice(row, row + 1)
        own = sampling.SamplingArrays(*(column[only] for column in settings))
        np.testing.assert_array_equal(filter_logits(logits[only], own)[0], filtered[row])
        assert sample(logits[only], own, keys_of(key_data[only])).tolist() == [together[row]]
    others = sampling.SamplingArrays(*(jnp.roll(column, 1) for column in settings))
    assert not np.array_equal(filter_logits(logits, others), filtered)
    draws = {tuple(sample(logits, settings, keys(ROWS, seed)).tolist()) for seed in range(8)}
    assert len(draws) > 1


@pytest.mark.parametrize("vocab_size", [1009, 50257])
def test_the_boundary_of_top_p_is_the_same_in_any_batch(vocab_size):
    """Each p is near a cumulative sum of probabilities: a change in rounding would show."""
    logits = random_logits(vocab_size, seed=2)
    reached = np.cumsum([-np.sort(-slow_probabilities(row)) for row in logits], axis=1)
    offsets = set()
    for step, count in enumerate(range(20, 900, 20)):
        off = 1 + (step % 11 - 5) * 6e-8  # as far as rounding reaches
        ps = (off * reached[:, count - 1]).astype(np.float32)
        counts = kept(keep_top_p(logits, ps)).sum(axis=1).tolist()
        alone = [kept(keep_top_p(logits[i : i + 1], ps[i : i + 1])).sum() for i in range(ROWS)]
        assert counts == alone
        offsets |= {c - count for c in counts}
    assert offsets == {0, 1}


# Draws


def draws(count, row, **given_settings):
    """Return how often each token of one row is sampled with `count` keys."""
    logits = np.tile(np.array(row, np.float32), (count, 1))
    settings = arrays(count, len(row), **given_settings)
    return np.bincount(sample(logits, settings, keys(count, 3)), minlength=len(row))


def chi_square_fits(counts, probabilities):
    """Return True unless the deviation is one of the largest 1 in 10^4."""
    possible = probabilities > 0
    expected = counts.sum() * probabilities[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    return statistic < freedom + 4 * np.sqrt(2 * freedom) + 6


@pytest.mark.parametrize(
    "given_settings",
    [
        {"temperature": 1.0},
        {"temperature": 1.6},
        {"temperature": 1.3, "top_k": 6},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.2, "min_p": 0.1},
        {"temperature": 1.2, "top_k": 8, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_the_frequencies_are_the_probabilities(given_settings):
    row = np.random.default_rng(2).normal(size=11).astype(np.float32)
    row[3] = row[7]
    counts = draws(20_000, row, **given_settings)
    full = {"top_k": 11, "top_p": 1.0, "min_p": 0.0} | given_settings
    t, k, p, m = (full[name] for name in sampling.SamplingArrays._fields)
    probabilities = slow_probabilities(slow_chain(row.astype(np.float64), t, k, p, m))
    assert counts[probabilities == 0].sum() == 0
    assert chi_square_fits(counts, probabilities)
    # The control: a temperature 10 % off is noticed.
    wrong = slow_probabilities(slow_chain(row.astype(np.float64), 1.1 * t, k, p, m))
    assert not chi_square_fits(counts, np.where(probabilities > 0, wrong, 0))


def test_the_noise_is_that_of_jax_random_gumbel():
    for vocab_size in (V, 128, 50257):
        want = np.stack([jax.random.gumbel(key, (vocab_size,), jnp.float32) for key in keys(ROWS)])
        np.testing.assert_array_equal(sampling.gumbel_noise(keys(ROWS), vocab_size), want)
        assert not np.array_equal(sampling.gumbel_noise(keys(ROWS, 1), vocab_size), want)


def test_greedy_ignores_the_key_and_its_filters():
    logits = np.round(random_logits())
    best = logits.argmax(axis=1).tolist()
    for given_settings in ({}, {"top_k": 3}, {"top_p": 0.1, "min_p": 0.9}):
        settings = arrays(ROWS, V, **given_settings)
        assert all(sample(logits, settings, keys(ROWS, s)).tolist() == best for s in range(3))
    drawn = arrays(ROWS, V, temperature=3.0)
    assert any(sample(logits, drawn, keys(ROWS, s)).tolist() != best for s in range(3))


def test_the_same_key_gives_the_same_token():
    logits, settings = random_logits(), arrays(ROWS, V, temperature=2.0)
    first = sample(logits, settings, keys(ROWS)).tolist()
    assert sample(logits, settings, keys(ROWS)).tolist() == first
    assert any(sample(logits, settings, keys(ROWS, s)).tolist() != first for s in range(1, 4))
    # Rows draw for themselves: with one key for all, equal rows agree, with their own they do not.
    equal = np.zeros((ROWS, V), np.float32)
    one = keys_of([[0, 4]] * ROWS)
    assert len(set(sample(equal, settings, one).tolist())) == 1
    assert len(set(sample(equal, settings, keys(ROWS)).tolist())) > 1


def test_ties_in_argmax_go_to_the_lowest_id():
    logits = np.array([[0, 2, 1, 2], [-0.0, 0.0, -1, 0.0], [-3, -3, -3, -3]], np.float32)
    assert greedy(logits).tolist() == logits.argmax(axis=1).tolist() == [1, 0, 0]
    assert sample(logits, arrays(ROWS, 4), keys(ROWS)).tolist() == [1, 0, 0]


def test_bad_logits_return_an_id_outside_the_vocabulary():
    """V is outside the vocabulary: the caller notices, instead of getting token 0 indefinitely."""
    logits = random_logits()
    logits[1, 5] = np.nan
    undrawn, drawn = (
        sample(
            logits,
            arrays(ROWS, V, temperature=t, top_k=4, top_p=0.9, min_p=0.1),
            keys(ROWS),
        )
        for t in (0.0, 1.0)
    )
    assert [token == V for token in undrawn] == [token == V for token in drawn] == [0, 1, 0]
    logits[1, 5] = np.inf
    assert sample(logits, arrays(ROWS, V, temperature=1.0), keys(ROWS))[1] == V


def test_a_token_excluded_beforehand_stays_excluded():
    logits = random_logits()
    logits[:, 1::2] = -np.inf
    for given_settings in SETTINGS:
        settings = arrays(ROWS, V, **given_settings)
        for seed in range(5):
            assert not any(t % 2 for t in sample(logits, settings, keys(ROWS, seed)).tolist())


# Cost


def test_no_setting_recompiles():
    step = jax.jit(lambda *arguments: sampling.sample(*arguments))
    logits = random_logits(211)
    sweep = itertools.product(
        (0.0, 1.0, [0.0, 0.7, None]),
        (None, 1, 200, [3, None, 211]),
        (None, 0.9, [1.0, 0.2, None]),
        (None, 0.05, [0.0, 0.5, None]),
    )
    for t, k, p, m in sweep:
        settings = arrays(ROWS, 211, temperature=t, top_k=k, top_p=p, min_p=m)
        step(logits, settings, keys(ROWS))
    assert step._cache_size() == 1
    static = jax.jit(lambda x, k: jax.lax.top_k(x, k)[0], static_argnums=1)
    for k in (1, 2):
        static(logits, k)
    assert static._cache_size() == 2


def test_work_that_no_row_needs_is_in_a_branch():
    logits, settings = random_logits(1009), arrays(ROWS, 1009)
    costly = {"random_bits", "exp", "log", "while", "scan", "top_k", "sort", "cumsum"}
    jaxpr = jax.make_jaxpr(sampling.sample)(logits, settings, keys(ROWS)).jaxpr
    assert not costly & primitives(jaxpr, into_branches=False)
    everywhere = primitives(jaxpr, into_branches=True)
    assert {"random_bits", "exp", "top_k"} <= everywhere
    assert not {"sort", "cumsum"} & everywhere
    jaxpr = jax.make_jaxpr(sampling.filter_logits)(logits, settings).jaxpr
    assert not costly - {"log"} & primitives(jaxpr, into_branches=False)


def test_shapes_and_types_match_the_annotations():
    logits, settings = random_logits(), arrays(ROWS, V, temperature=1.0, top_k=2)
    checked = {
        name: jaxtyped(typechecker=beartype)(getattr(sampling, name))
        for name in ("sample", "greedy", "filter_logits", "log_probability", "gumbel_noise")
    }
    logits = jnp.asarray(logits)
    tokens = checked["sample"](logits, settings, keys(ROWS))
    checked["greedy"](logits)
    checked["filter_logits"](logits, settings)
    checked["gumbel_noise"](keys(ROWS), V)
    assert checked["log_probability"](logits.astype(jnp.bfloat16), tokens).dtype == jnp.float32
    with pytest.raises(Exception, match="logits"):
        checked["sample"](logits.astype(jnp.bfloat16), settings, keys(ROWS))


# Log-probabilities


@pytest.mark.parametrize("vocab_size", [V, 50257])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_log_probability(vocab_size, shift):
    logits = random_logits(vocab_size) + np.float32(shift)
    tokens = i32(0, 7, vocab_size - 1)
    ours = np.asarray(log_probability(logits, tokens), np.float64)
    want = [slow_log_probability(row, token) for row, token in zip(logits, tokens, strict=True)]
    np.testing.assert_allclose(ours, want, rtol=6e-7)  # measured 1.4e-7
    logits[:, 1] += 2
    wrong = [slow_log_probability(row, token) for row, token in zip(logits, tokens, strict=True)]
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(ours, wrong, rtol=6e-7)


def test_log_probability_of_extreme_logits():
    logits = one_hot(V, -1e4, 1e4)
    tokens = i32(V - 1, 0, 8)
    assert log_probability(logits, tokens).tolist() == [0, 0, -2e4]


# Checks of settings


def test_settings_become_one_array_per_setting():
    one = arrays(ROWS, V)
    assert [x.tolist() for x in one] == [[0.0] * 3, [V] * 3, [1.0] * 3, [0.0] * 3]
    several = arrays(
        ROWS,
        V,
        temperature=np.array([0, 1, 2]),
        top_k=(V, None, np.int64(1)),
        top_p=jnp.asarray(0.5),
        min_p=[None, 0, 0.25],
    )
    assert [x.dtype for x in several] == [jnp.float32, jnp.int32, jnp.float32, jnp.float32]
    want = [[0.0, 1.0, 2.0], [V, V, 1], [0.5] * 3, [0.0, 0.0, 0.25]]
    assert [x.tolist() for x in several] == want
    assert jax.tree.structure(several).num_leaves == 4


T_WORDS = "from 0 to 3.403e+38"
K_WORDS = "a whole number from 1 to 53, the size of the vocabulary"
P_WORDS = "a number in (0, 1]"
M_WORDS = "a number in [0, 1)"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -0.1, f"temperature must be {T_WORDS}, got -0.1"),
        ("temperature", float("nan"), f"temperature must be {T_WORDS}, got nan"),
        ("temperature", float("inf"), f"temperature must be {T_WORDS}, got inf"),
        ("temperature", 1e39, f"temperature must be {T_WORDS}, got 1e+39"),  # beyond float32
        ("temperature", True, f"temperature must be {T_WORDS}, got True"),
        ("temperature", "0.7", f"temperature must be {T_WORDS}, got '0.7'"),
        ("temperature", [1, -2, 1], f"temperature of row 1 must be {T_WORDS}, got -2"),
        ("temperature", [1, 1], "temperature lists 2 values for 3 rows; give one per row"),
        ("temperature", [], "temperature lists 0 values for 3 rows; give one per row"),
        ("top_k", 0, f"top_k must be {K_WORDS}, got 0"),
        ("top_k", 54, f"top_k must be {K_WORDS}, got 54"),
        ("top_k", 2.5, f"top_k must be {K_WORDS}, got 2.5"),
        ("top_k", float("nan"), f"top_k must be {K_WORDS}, got nan"),
        ("top_k", True, f"top_k must be {K_WORDS}, got True"),
        ("top_k", [1, 2, -3], f"top_k of row 2 must be {K_WORDS}, got -3"),
        ("top_k", np.array([1, 2, 3, 4]), "top_k lists 4 values for 3 rows; give one per row"),
        ("top_p", 0, f"top_p must be {P_WORDS}, got 0"),
        ("top_p", 1.01, f"top_p must be {P_WORDS}, got 1.01"),
        ("top_p", -0.5, f"top_p must be {P_WORDS}, got -0.5"),
        ("top_p", True, f"top_p must be {P_WORDS}, got True"),
        ("top_p", [0.5, None, float("nan")], f"top_p of row 2 must be {P_WORDS}, got nan"),
        ("min_p", 1.0, f"min_p must be {M_WORDS}, got 1.0"),
        ("min_p", -0.01, f"min_p must be {M_WORDS}, got -0.01"),
        ("min_p", False, f"min_p must be {M_WORDS}, got False"),
        ("min_p", [float("nan"), 0, 0], f"min_p of row 0 must be {M_WORDS}, got nan"),
        ("min_p", [[0.1], [0.2], [0.3]], f"min_p of row 0 must be {M_WORDS}, got [0.1]"),
    ],
)
def test_bad_settings_are_named(name, value, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        arrays(ROWS, V, **{name: value})
    assert str(caught.value) == message


@pytest.mark.parametrize("least", [1e-50, 1e-45])
def test_settings_too_small_for_float32_still_give_a_token(least):
    logits = random_logits()
    settings = arrays(ROWS, V, temperature=[1, 1, least], top_p=[least, 1, 1], min_p=least)
    tokens = sample(logits, settings, keys(ROWS))
    assert tokens[0] == logits[0].argmax()
    assert tokens[2] == logits[2].argmax()
    assert tokens[1] < V


# Properties

WIDTH = 13
any_logits = hnp.arrays(
    np.float32,
    (ROWS, WIDTH),
    elements=st.one_of(
        st.integers(-3, 3).map(float),
        st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
    ),
)


def per_row(elements):
    return st.lists(elements, min_size=ROWS, max_size=ROWS)


some_settings = st.fixed_dictionaries(
    {
        "temperature": per_row(st.one_of(st.just(0.0), st.floats(0.01, 50))),
        "top_k": per_row(st.one_of(st.none(), st.integers(1, WIDTH))),
        "top_p": per_row(st.one_of(st.none(), st.floats(1e-3, 1))),
        "min_p": per_row(st.one_of(st.none(), st.floats(0, 0.99))),
    }
)
few = hypothesis_settings(max_examples=40, deadline=None)


@few
@given(any_logits, some_settings, st.integers(0, 2**31))
def test_the_best_token_survives_and_filters_are_monotonic(logits, given_, seed):
    settings = arrays(ROWS, WIDTH, **given_)
    filtered = np.asarray(filter_logits(logits, settings))
    tokens = sample(logits, settings, keys(ROWS, seed)).tolist()
    for row, left, token, t in zip(
        logits, filtered, tokens, settings.temperature.tolist(), strict=True
    ):
        assert kept(left)[row.argmax()]
        worst = row[kept(left)].min()
        assert (row[~kept(left)] <= worst).all()
        assert kept(left)[token]
        assert t > 0 or token == row.argmax()


@few
@given(any_logits, per_row(st.integers(1, WIDTH)), st.permutations(range(WIDTH)))
def test_top_k_does_not_depend_on_the_order(logits, ks, order):
    filtered = np.asarray(keep_top_k(logits, i32(*ks)))
    np.testing.assert_array_equal(
        filtered, [slow_top_k(row, k) for row, k in zip(logits, ks, strict=True)]
    )
    np.testing.assert_array_equal(keep_top_k(logits[:, order], i32(*ks)), filtered[:, order])
    np.testing.assert_array_equal(keep_top_k(filtered, i32(*ks)), filtered)


@few
@given(any_logits, per_row(st.floats(1e-3, 0.999)))
def test_top_p_reaches_p_with_the_fewest_tokens(logits, ps):
    filtered = keep_top_p(logits, f32(*ps))
    for row, left, p in zip(logits.astype(np.float64), kept(filtered), ps, strict=True):
        probabilities = slow_probabilities(row)
        assert probabilities[left].sum() >= p - SLACK
        without_the_last = left & (row > row[left].min())
        assert probabilities[without_the_last].sum() < p + SLACK


@few
@given(any_logits, per_row(st.floats(0, 0.99)))
def test_min_p_is_a_ratio(logits, ms):
    for row, left, m in zip(
        logits.astype(np.float64), kept(keep_min_p(logits, f32(*ms))), ms, strict=True
    ):
        ratios = np.exp(row - row.max())
        assert (ratios[left] >= m - SLACK).all()
        assert (ratios[~left] < m + SLACK).all()
