"""A reported cause explains the difference, and no earlier block contradicts it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax.interop.course_state import named_tensors
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt.capture import capture
from obscura_jax.parity.gpt.causes import diagnose
from obscura_jax.parity.gpt.lab import compare_implementations
from obscura_jax.parity.gpt.mistakes import mistakes
from obscura_jax.parity.gpt.references import reference
from obscura_jax.parity.gpt.report import verdict
from tests.support.models import BIASED, model_of
from tests.test_parity_guests import GUESTS

# Four heads of width 4, so several wrong scales are the same number.
CFG = replace(BIASED, n_heads=4, emb_dim=16, n_layers=3)
IN_BLOCK = (
    *("norm1", "att.W_query", "att.W_key", "att.W_value", "att.scores", "att.weights"),
    *("att.context", "att.out_proj", "residual", "norm2"),
    *("ff.layers.0", "ff.layers.1", "ff.layers.2", ""),
)
ONLY_HERE = "(here, but not earlier in the model)"


@pytest.fixture(scope="module")
def ours():
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, "float64"), model_of(CFG))
        ids = np.random.default_rng(0).integers(0, 17, (1, 11))
        values = {k: np.asarray(x) for k, x in capture(GPTModel(CFG), params, ids).items()}
        flat = {k: np.asarray(x) for k, x in named_tensors(CFG, params).items()}
    return values, flat


def place(n, part):
    return f"trf_blocks.{n}.{part}".rstrip(".")


def difference(x, y):
    comparable = x.shape == y.shape and np.isfinite(x).all() and np.isfinite(y).all()
    return np.abs(x - y).max() / np.abs(y).max() if comparable else np.inf


@pytest.mark.parametrize("part", IN_BLOCK)
def test_a_mistake_in_every_block_is_named(ours, part):
    values, flat = ours
    name = place(0, part)
    tried = list(mistakes(name, values, CFG, flat))
    assert tried
    for mistake in tried:
        if difference(mistake.values, values[name]) > 1e-9:
            found = diagnose(name, values, values | {name: mistake.values}, CFG, flat)
            assert mistake.words in found
            if "norm2" not in part:  # norm1 runs the same code before it
                assert ONLY_HERE not in found


@pytest.mark.parametrize("part", IN_BLOCK)
def test_a_mistake_that_an_equal_block_contradicts_is_marked(ours, part):
    """The mistake is in the second block only, and the first block ran the same code."""
    values, flat = ours
    first, name = place(0, part), place(1, part)
    in_first = {m.words: m.values for m in mistakes(first, values, CFG, flat)}
    tried = list(mistakes(name, values, CFG, flat))
    contradicted = 0
    for mistake in tried:
        words = mistake.words
        if words not in in_first or difference(in_first[words], values[first]) <= 1e-6:
            continue  # it would not change the first block
        if difference(mistake.values, values[name]) <= 1e-9:
            continue
        found = diagnose(name, values, values | {name: mistake.values}, CFG, flat) or ""
        others = [m.words for m in tried if difference(m.values, mistake.values) <= 1e-12]
        contradicted += 1
        if mistake.factor and ONLY_HERE not in found:
            assert words not in found
        elif not set(others) - in_first.keys():
            assert found.endswith(ONLY_HERE)
    assert contradicted


@pytest.mark.parametrize("part", IN_BLOCK)
def test_a_mistake_in_two_blocks_is_named_without_a_limit(ours, part):
    """This is the control of the test above: both blocks have the mistake."""
    values, flat = ours
    first, name = place(0, part), place(1, part)
    in_first = {m.words: m.values for m in mistakes(first, values, CFG, flat)}
    for mistake in mistakes(name, values, CFG, flat):
        if mistake.words in in_first and difference(mistake.values, values[name]) > 1e-9:
            theirs = values | {name: mistake.values, first: in_first[mistake.words]}
            if part in ("norm1", "norm2"):
                for n, norm in ((0, "norm1"), (0, "norm2"), (1, "norm1")):
                    made = mistakes(place(n, norm), values, CFG, flat)
                    found = {m.words: m.values for m in made}
                    theirs[place(n, norm)] = found.get(mistake.words, theirs[place(n, norm)])
                if mistake.words.startswith("swapped"):
                    continue  # a norm cannot be swapped with itself
            found = diagnose(name, values, theirs | {name: mistake.values}, CFG, flat)
            assert mistake.words in found
            assert ONLY_HERE not in found


@pytest.mark.parametrize("name", ["embeddings", "final_norm", "logits"])
def test_a_mistake_outside_the_blocks_is_named(ours, name):
    values, flat = ours
    for mistake in mistakes(name, values, CFG, flat):
        if difference(mistake.values, values[name]) > 1e-9:
            found = diagnose(name, values, values | {name: mistake.values}, CFG, flat)
            assert mistake.words in found
            assert (ONLY_HERE in found) == (name == "final_norm")  # other norms are equal


def weights(values, n, factor):
    scores = values[place(n, "att.scores")] * factor
    scores = np.where(np.tril(np.ones(scores.shape[-2:], bool)), scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_a_scale_that_fits_by_chance_is_not_named(ours):
    """1/4 is the scale of the full width and of the head width, but block 0 has neither."""
    values, flat = ours
    name = place(1, "att.weights")
    found = diagnose(name, values, values | {name: weights(values, 1, 1 / 4)}, CFG, flat)
    assert found == "a scale for each block: scores are also scaled by 1/(layer + 1)"
    everywhere = {place(n, "att.weights"): weights(values, n, 1 / 4) for n in range(2)}
    found = diagnose(place(0, "att.weights"), values, values | everywhere, CFG, flat)
    assert found.startswith("a wrong scale: the root of the full width 16, or a wrong scale: ")
    assert "layer" not in found
    found = diagnose(name, values, values | {name: weights(values, 1, 0.3)}, CFG, flat)
    assert found == f"a scale: scores are divided by 3.33333, ours by 2 {ONLY_HERE}"


def test_noise_has_no_cause(ours):
    values, flat = ours
    rng = np.random.default_rng(0)
    for name in values:
        noisy = values[name] * (1 + 1e-5 * rng.normal(size=values[name].shape))
        assert diagnose(name, values, values | {name: noisy}, CFG, flat) is None
        assert diagnose(name, values, values, CFG, flat) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "why"),
    [
        ("PerLayer", 1, "a scale for each block: scores are also scaled by 1/(layer + 1)"),
        ("PerLayerRoot", 1, f"a scale: scores are divided by 2.82843, ours by 2 {ONLY_HERE}"),
        ("WholeWidth", 0, "a wrong scale: the root of the full width 16, or "),
    ],
)
def test_modules_with_wrong_scales_are_named(name, first, why):
    params = model_of(CFG)
    theirs = reference(f"{GUESTS}:{name}", CFG, named_tensors(CFG, params))
    sentence = verdict(compare_implementations("x", CFG, params, theirs, steps=0, new_tokens=0))
    assert sentence.startswith(f"differs, first at trf_blocks.{first}.att.weights, by ")
    assert f"in float64: {why}" in sentence
