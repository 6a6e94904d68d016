"""The page's filters keep the tokens that `decoding.sampling` keeps, as probable as there.

The page knows the most probable tokens exactly, and counts the others in bins of logits.
"""

import jax
import numpy as np
import pytest

from obscura_jax.decoding.sampling import Sampling, filter_logits, greedy
from obscura_jax.look.assemble import joined_modules
from tests.browser.fake_data import numbers, stored_next

VOCAB, STORED = 3000, 256
filter_rows = jax.jit(filter_logits)
TRIALS = 100


@pytest.fixture
def page(opened):
    script = joined_modules(("filters",))
    return opened.html(
        f"<!doctype html><script>{script}\nwindow.filtered = of_filters.filtered</script>",
        ready=False,
    )


def of_page(page, logits, settings, stored=STORED):
    """Return what the page keeps of the stored tokens and of the tail, and the probabilities."""
    parts = stored_next(logits[None], stored)
    tail = {"low": float(numbers(parts["tail"]["low"])[0]), "width": parts["tail"]["width"]}
    tail["counts"] = numbers(parts["tail"]["counts"])[0].tolist()
    weights = np.exp(logits - logits.max(), dtype=float)
    first = np.float32(1 / weights.sum())
    tail["weight"] = float(1 / first - np.sort(weights)[-stored:].sum())
    result = page.evaluate(
        "([logits, tail, settings]) => filtered(Float32Array.from(logits), tail, settings)",
        [numbers(parts["logits"])[0].tolist(), tail, settings],
    )
    ids = numbers(parts["ids"])[0]
    return ids, np.array(result["kept"]), result["tailKept"], np.array(result["probs"])


def of_package(logits, settings):
    """Return the probability of every token; 0 if it is not kept."""
    names = {"topK": "top_k", "topP": "top_p", "minP": "min_p"}
    sampling = Sampling(**{names.get(name, name): value for name, value in settings.items()})
    rows = sampling.arrays(1, logits.size)
    if settings["temperature"] == 0:
        return np.eye(logits.size)[int(greedy(logits[None])[0])]
    kept = np.asarray(filter_rows(logits[None], rows)[0], float)
    weights = np.exp(kept - kept.max())
    return weights / weights.sum()


def random_settings(rng):
    def maybe(value):
        return value if rng.random() < 0.6 else None

    return {
        "temperature": round(float(rng.uniform(0.3, 2)), 2),
        "topK": maybe(int(rng.integers(1, STORED))),
        "topP": maybe(round(float(rng.uniform(0.05, 1)), 2)),
        "minP": maybe(round(float(rng.uniform(0, 0.3)), 3)),
    }


def random_logits(rng):
    """Return logits as those of a model: a few tokens have most of the probability."""
    logits = rng.normal(size=VOCAB) * rng.uniform(1, 3)
    logits[rng.integers(0, VOCAB, 30)] += rng.uniform(0, 8, 30)
    return logits.astype(np.float32)


def close(page, logits, settings, other=None):
    """Return whether the page and the package agree; `other` are settings for the package."""
    ids, kept, in_tail, probs = of_page(page, logits, settings)
    expected = of_package(logits, other or settings)
    in_package = (np.delete(expected, ids) > 0).sum()
    ends_in_tail = not {in_tail, in_package} <= {0, VOCAB - STORED}
    error = abs(probs - expected[ids]).max()
    return (
        (kept == (expected[ids] > 0)).all()
        and abs(in_tail - in_package) <= 10  # measured, in 1000 trials: 5
        # measured: 0.7% of a probability, else 9e-6
        and (np.allclose(probs, expected[ids], rtol=0.02) if ends_in_tail else error < 3e-5)
    )


def test_random_settings_keep_the_same_tokens(page):
    rng = np.random.default_rng(0)
    changed = {"temperature": 1.05, "topK": 1.2, "topP": 1.02, "minP": 1.3}
    noticed = dict.fromkeys(changed, 0)
    for _ in range(TRIALS):
        logits, settings = random_logits(rng), random_settings(rng)
        assert close(page, logits, settings), settings
        for name, factor in changed.items():
            if settings[name]:
                value = min(settings[name] * factor, 1 if name == "topP" else np.inf)
                other = settings | {name: int(value) if name == "topK" else value}
                noticed[name] += not close(page, logits, settings, other)
    assert min(noticed.values()) > 0  # each setting has its effect


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 2, "topP": 0.9},
        {"temperature": 1.5, "topP": 0.97},
        {"temperature": 2, "minP": 0.001},
        {"temperature": 2, "topP": 0.9, "minP": 0.001},
        {"temperature": 2},
    ],
)
def test_filters_that_end_in_the_tail_keep_about_as_many(page, settings):
    logits = np.random.default_rng(1).normal(size=VOCAB).astype(np.float32)
    assert of_page(page, logits, settings)[2] > 100
    assert close(page, logits, settings)
    assert not close(page, logits, settings, {"temperature": 2, "topP": 0.5})


def test_equal_logits_are_kept_together(page):
    rng = np.random.default_rng(2)
    ties = 0
    for _ in range(TRIALS):
        logits = np.round(2 * random_logits(rng)) / 2
        settings = random_settings(rng) | {"topK": int(rng.integers(1, 40))}
        ids, kept, _, probs = of_page(page, logits, settings)
        expected = of_package(logits, settings)
        assert (kept == (expected[ids] > 0)).all(), settings
        assert abs(probs - expected[ids]).max() < 1e-6  # measured: 3e-8
        ties += kept.sum() > settings["topK"]
    assert ties > 0


def test_temperature_0_is_greedy(page):
    logits = random_logits(np.random.default_rng(3))
    settings = {"temperature": 0, "topK": 5}
    ids, kept, in_tail, probs = of_page(page, logits, settings)
    assert np.flatnonzero(kept).tolist() == [0]
    assert in_tail == 0
    assert (probs == of_package(logits, settings)[ids]).all()
    assert probs[0] == 1
    assert not close(page, logits, settings, {"temperature": 1, "topK": 5})


def test_a_vocabulary_that_is_stored_has_no_tail(page):
    logits = random_logits(np.random.default_rng(4))[:50]
    settings = {"temperature": 1.3, "topP": 0.8}
    ids, kept, in_tail, probs = of_page(page, logits, settings)
    expected = of_package(logits, settings)
    assert (kept == (expected[ids] > 0)).all()
    assert 0 < kept.sum() < 50
    assert in_tail == 0
    assert abs(probs - expected[ids]).max() < 1e-6  # measured: 2e-8
