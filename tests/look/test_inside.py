"""`inside`: the arrays of one text, padded to a size that is compiled once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import look
from obscura_jax.look import inside_model
from obscura_jax.nn.model import GPTModel
from tests.support.models import BIASED, IDS, model_of

MODEL, PARAMS = GPTModel(BIASED), model_of(BIASED)
IDS_5 = IDS[1, :5]
# Measured in float32: at most 4.8e-7, for logits of about 1.
ALLOWED = 2e-6


@pytest.fixture(scope="module")
def found():
    return look.inside(MODEL, PARAMS, IDS_5)


@pytest.mark.slow
def test_shapes_are_those_of_the_text_and_the_model(found):
    t, v, blocks, heads, k = 5, 17, 2, 3, 5
    assert found.ids.tolist() == IDS_5.tolist()
    assert found.target.shape == found.prediction.target_logprob.shape == (t,)
    assert found.logits.shape == (t, v)
    assert found.attention.shape == (blocks, heads, t, t)
    assert found.residual_norm.shape == (blocks + 1, t)
    assert found.lens.ids.shape == found.lens.probs.shape == (blocks + 1, t, k)
    assert found.lens.target_rank.shape == found.lens.target_logprob.shape == (blocks + 1, t)
    assert found.ablations.heads.ids.shape == (blocks, heads, t, k)
    assert found.ablations.heads_change.shape == found.attribution.heads.shape == (blocks, heads, t)
    assert found.ablations.feed_forward_change.shape == (blocks, t)
    assert {score.shape for score in found.head_scores.values()} == {(blocks, heads)}
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(vars(found)))


@pytest.mark.slow
def test_values_are_those_of_the_model_without_padding(found):
    logits = np.asarray(MODEL.apply({"params": PARAMS}, jnp.asarray(IDS_5)))
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    assert found.target.tolist() == [*IDS_5[1:], logits[-1].argmax()]
    own = logprobs[np.arange(5), found.target]
    assert np.abs(found.logits - logits).max() <= ALLOWED
    assert np.abs(found.prediction.target_logprob - own).max() <= ALLOWED
    assert np.abs(found.prediction.target_logprob - np.roll(own, 1)).max() > 0.01
    assert found.prediction.target_rank.tolist() == [
        (logits[t] > logits[t, found.target[t]]).sum() for t in range(5)
    ]
    best = np.argsort(-logits, axis=1)[:, :5]
    assert found.prediction.ids.tolist() == best.tolist()
    assert (
        np.abs(found.prediction.probs - np.exp(logprobs)[np.arange(5)[:, None], best]).max() < 1e-6
    )
    seen = look.read_activations(MODEL, PARAMS, jnp.asarray(IDS_5))
    assert np.abs(found.attention - seen.attention).max() <= ALLOWED
    assert np.abs(found.residual_norm - jnp.linalg.norm(seen.residual, axis=-1)).max() <= ALLOWED
    scores = look.first_token_score(seen.attention, jnp.asarray(IDS_5))
    assert np.abs(found.head_scores["first token"] - scores).max() <= ALLOWED


def test_the_last_row_of_the_lens_is_the_models_own_prediction(found):
    for last, own in zip(found.lens, found.prediction, strict=True):
        assert np.abs(last[-1] - own).max() <= ALLOWED
    assert np.abs(found.lens.target_logprob[0] - found.prediction.target_logprob).max() > 0.01


def test_ablations_are_differences_from_the_whole_model(found):
    parts = found.ablations
    whole = found.prediction.target_logprob
    assert np.abs(parts.heads_change + whole - parts.heads.target_logprob).max() <= ALLOWED
    assert np.abs(parts.heads_change).max() > 0.01
    without = look.inside(MODEL, PARAMS, IDS_5, ablate=False)
    assert without.ablations is None
    alone = look.ablate_parts(MODEL, PARAMS, IDS_5)
    assert np.abs(alone.heads_change - parts.heads_change).max() == 0


def test_texts_of_one_bucket_share_a_program():
    before = inside_model._look._cache_size()
    look.inside(MODEL, PARAMS, IDS[2, :7], ablate=False)
    once = inside_model._look._cache_size()
    look.inside(MODEL, PARAMS, IDS[2, :3], ablate=False)
    assert inside_model._look._cache_size() == once <= before + 1


def test_one_token_and_a_full_context():
    one = look.inside(MODEL, PARAMS, [4])
    assert one.attention.tolist() == [[[[1.0]]] * 3] * 2
    assert look.inside(MODEL, PARAMS, IDS[0], ablate=False).logits.shape == (11, 17)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "empty"),
        ([[1, 2]], "flat list"),
        ([17], "outside the vocabulary"),
        ([-1], "outside the vocabulary"),
        ([1.5], "integers"),
        ([1] * 12, "12 positions do not fit"),
    ],
)
def test_other_ids_are_refused(ids, message, unchecked):
    with pytest.raises(ValueError, match=message):
        look.inside(MODEL, PARAMS, ids)


def test_a_damaged_model_is_refused():
    damaged = jax.tree.map(lambda leaf: leaf * np.nan, PARAMS)
    with pytest.raises(ValueError, match="damaged"):
        look.inside(MODEL, damaged, IDS_5)


def test_bfloat16_weights_give_float32_values():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), PARAMS)
    found = look.inside(MODEL, params, IDS_5, ablate=False)
    assert {leaf.dtype for leaf in (found.logits, found.attention)} == {np.dtype("float32")}
    own = np.take_along_axis(found.logits, found.target[:, None], axis=1)[:, 0]
    # Measured: 1.4e-3, since the final layer norm rounds to bfloat16, and attribution does not.
    assert np.abs(found.attribution.logit - own).max() <= 6e-3
    assert np.abs(found.attribution.logit - np.roll(own, 1)).max() > 6e-3
