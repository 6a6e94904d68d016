"""Lens, ablation, attribution and scores of heads equal slow, direct computations in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import look
from obscura_jax.nn.model import GPTModel
from tests.support.models import BIASED, IDS, TIED, model_of

pytestmark = pytest.mark.slow

CONFIGS = {"own head": replace(BIASED, n_layers=3), "tied head": replace(TIED, n_layers=3)}
ROW = IDS[0]
# Measured in float64, for logits of about 1: at most 1.4e-15.
ALLOWED = 1e-14


def far(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return np.abs(a - b).max()


@pytest.fixture(params=CONFIGS)
def small(request, x64):
    """A model and its parameters, in float64."""
    cfg = CONFIGS[request.param]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), model_of(cfg))
    return GPTModel(cfg), params


def jitted(function, model, *args):
    return jax.jit(partial(function, model))(*args)


def logits_of(model, params, ids=ROW):
    return jitted(lambda model, params: model.apply({"params": params}, ids), model, params)


def changed(params, block, *path, to):
    """Return the parameters with `to(weight)` at a path in a block."""
    copy = jax.tree.map(lambda leaf: leaf, params)
    inner = copy["trf_blocks"][str(block)]
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = to(inner[path[-1]])
    return copy


def without_head(model, params, block, head):
    """Return the parameters with the columns of `out_proj` that read a head set to zero."""
    width = model.cfg.emb_dim // model.cfg.n_heads

    def cut(weight):
        return weight.at[:, head * width : (head + 1) * width].set(0)

    return changed(params, block, "att", "out_proj", "weight", to=cut)


def without_feed_forward(params, block):
    for name in ("weight", "bias"):
        params = changed(params, block, "ff", "layers", "2", name, to=jnp.zeros_like)
    return params


def test_activations_are_those_of_the_forward_pass(small):
    model, params = small
    seen = jitted(look.read_activations, model, params, ROW)
    assert far(seen.logits, logits_of(model, params)) <= ALLOWED
    assert far(seen.attention.sum(axis=-1), np.ones(seen.attention.shape[:-1])) <= ALLOWED
    assert not np.triu(seen.attention, 1).any()
    # After each block, the stream is that of a model which ends there.
    for layers in range(1, 4):
        cut = GPTModel(replace(model.cfg, n_layers=layers))
        hidden = cut.apply({"params": params}, jnp.asarray(ROW), method="hidden_states")
        assert far(seen.residual[layers], hidden) <= ALLOWED
        assert far(seen.residual[layers - 1], hidden) > 0.01


def test_the_lens_says_what_a_shorter_model_says(small):
    model, params = small
    seen = jitted(look.read_activations, model, params, ROW)
    lens = jitted(look.logit_lens, model, params, seen.residual)
    for layers in range(1, 4):
        cut = GPTModel(replace(model.cfg, n_layers=layers))
        assert far(lens[layers], logits_of(cut, params)) <= ALLOWED
        assert far(lens[layers - 1], logits_of(cut, params)) > 0.01
    assert far(lens[-1], seen.logits) <= ALLOWED


def test_a_head_that_is_taken_out_has_no_columns(small):
    model, params = small
    found = jitted(look.head_ablations, model, params, ROW)
    for block in range(3):
        for head in range(3):
            expected = jax.nn.log_softmax(
                logits_of(model, without_head(model, params, block, head))
            )
            assert far(found[block, head], expected) <= ALLOWED
            assert far(found[block, (head + 1) % 3], expected) > 0.01


def test_feed_forward_layers_that_are_taken_out_add_nothing(small):
    model, params = small
    found = jitted(look.feed_forward_ablations, model, params, ROW)
    for block in range(3):
        expected = jax.nn.log_softmax(logits_of(model, without_feed_forward(params, block)))
        assert far(found[block], expected) <= ALLOWED
        assert far(found[(block + 1) % 3], expected) > 0.01


def test_a_head_whose_output_is_zero_changes_nothing(small):
    model, params = small
    silent = without_head(model, params, 1, 2)
    whole = jax.nn.log_softmax(logits_of(model, silent))
    found = jitted(look.head_ablations, model, silent, ROW)
    assert far(found[1, 2], whole) <= ALLOWED
    others = [found[block, head] for block in range(3) for head in range(3)]
    assert sum(far(other, whole) > 0.01 for other in others) == 8


def direct_attribution(model, params, seen, targets):
    """Return the parts of each target's logit, one vector of the residual stream at a time."""
    cfg = model.cfg
    norm = params["final_norm"]
    rows = params["tok_emb" if cfg.tie_weights else "out_head"]["weight"][np.asarray(targets)]
    width = cfg.emb_dim // cfg.n_heads

    def into_logit(vectors):
        out = []
        for t, vector in enumerate(np.asarray(vectors)):
            last = np.asarray(seen.residual[-1][t])
            scaled = (vector - vector.mean()) / np.sqrt(last.var() + cfg.ln_eps)
            out.append(float((scaled * norm["scale"]) @ rows[t]))
        return out

    heads, biases = [], []
    for block in range(cfg.n_layers):
        projection = params["trf_blocks"][str(block)]["att"]["out_proj"]
        columns = np.split(projection["weight"], cfg.n_heads, axis=1)
        assert columns[0].shape == (cfg.emb_dim, width)
        heads.append(
            [
                into_logit(np.asarray(seen.contexts[block, head]) @ columns[head].T)
                for head in range(cfg.n_heads)
            ]
        )
        biases.append(into_logit(np.tile(projection["bias"], (len(rows), 1))))
    return look.Attribution(
        embeddings=into_logit(seen.residual[0]),
        heads=heads,
        attention_bias=biases,
        feed_forward=[into_logit(vectors) for vectors in seen.feed_forward],
        final_norm=rows @ norm["shift"],
        logit=np.take_along_axis(np.asarray(seen.logits), targets[:, None], axis=1)[:, 0],
    )


def test_the_parts_of_a_logit_are_as_computed_directly_and_sum_to_it(small):
    model, params = small
    seen = jitted(look.read_activations, model, params, ROW)
    targets = np.roll(ROW, -1)
    found = jitted(look.direct_logit_attribution, model, params, seen, targets)
    expected = direct_attribution(model, params, seen, targets)
    for name, part in found._asdict().items():
        assert far(part, getattr(expected, name)) <= ALLOWED, name
    total = sum(np.asarray(part).reshape(-1, len(ROW)).sum(axis=0) for part in found[:-1])
    assert far(total, expected.logit) <= ALLOWED
    assert far(total - found.heads[1, 1], expected.logit) > 0.01
    other = jitted(look.direct_logit_attribution, model, params, seen, ROW)
    assert far(other.heads, expected.heads) > 0.01


def mean_weight(attention, ids, chosen):
    """Return the mean weight on the keys that `chosen(query, key)` accepts."""
    sums = []
    for query in range(len(ids)):
        keys = [key for key in range(query + 1) if chosen(query, key)]
        if keys:
            sums.append(sum(float(attention[query, key]) for key in keys))
    return np.mean(sums) if sums else np.nan


SCORES = {
    look.previous_token_score: lambda ids: lambda query, key: key == query - 1,
    look.first_token_score: lambda ids: lambda query, key: key == 0 and query > 0,
    look.same_token_score: lambda ids: lambda query, key: key < query and ids[key] == ids[query],
    look.induction_score: lambda ids: lambda query, key: key > 0 and ids[key - 1] == ids[query],
}
REPEATED = [3, 5, 7, 3, 5, 7, 9, 3, 5]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.__name__)
def test_scores_are_means_over_pairs_of_positions(score, x64):
    rng = np.random.default_rng(1)
    weights = np.tril(rng.random((2, 3, 9, 9)))
    weights /= weights.sum(axis=-1, keepdims=True)
    found = score(weights, np.asarray(REPEATED))
    chosen = SCORES[score](REPEATED)
    expected = [[mean_weight(head, REPEATED, chosen) for head in block] for block in weights]
    assert far(found, expected) <= ALLOWED
    others = [other for other in SCORES if other is not score]
    assert all(far(other(weights, np.asarray(REPEATED)), expected) > 0.01 for other in others)
    # Padding does not count, whatever its weights are.
    padded = np.zeros((2, 3, 12, 12))
    padded[..., :9, :9] = weights
    padded[..., 9:, :] = rng.random((2, 3, 3, 12))
    assert far(score(padded, np.asarray([*REPEATED, -1, -1, -1])), expected) <= ALLOWED
    assert far(score(padded, np.asarray([*REPEATED, 3, 5, 7])), expected) > 0.01


def test_a_score_without_a_case_is_nan():
    weights = np.eye(3, dtype=np.float32)
    different = np.asarray([1, 2, 3])
    assert np.isnan(look.same_token_score(weights, different))
    assert np.isnan(look.induction_score(weights, different))
    assert look.first_token_score(weights, different) == 0
    assert np.isnan(look.previous_token_score(weights[:1, :1], different[:1]))


def test_an_induction_head_is_recognized():
    ids = np.asarray([3, 5, 7, 3, 5, 7])
    weights = np.eye(6)
    weights[3:] = np.eye(6)[[1, 2, 3]]  # each looks at what followed its earlier occurrence
    assert look.induction_score(weights, ids) == 1
    assert look.previous_token_score(weights, ids) < 0.5


def test_every_function_works_under_vmap(small):
    model, params = small
    texts = jnp.asarray(IDS)

    def all_of(ids):
        seen = look.read_activations(model, params, ids)
        return (
            seen,
            look.logit_lens(model, params, seen.residual),
            look.head_ablations(model, params, ids),
            look.feed_forward_ablations(model, params, ids),
            look.direct_logit_attribution(model, params, seen, ids),
            look.first_token_score(seen.attention, ids),
        )

    together, alone_of = jax.jit(jax.vmap(all_of))(texts), jax.jit(all_of)
    for row, ids in enumerate(texts):
        alone = alone_of(ids)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            assert far(a[row], b) <= 10 * ALLOWED
            assert far(a[(row + 1) % 3], b) > 0
