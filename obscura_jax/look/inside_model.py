"""`inside`: what a model computes for one text, as arrays.

Axes: T positions, L blocks, H heads, D width, V vocabulary, K alternatives.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array

from obscura_jax.decoding.cache import bucket_length
from obscura_jax.decoding.sampling import greedy, log_probability
from obscura_jax.decoding.state import check_finite
from obscura_jax.look.ablation import block_ablations
from obscura_jax.look.activations import read_activations
from obscura_jax.look.attribution import Attribution, direct_logit_attribution
from obscura_jax.look.head_scores import HEAD_SCORES
from obscura_jax.look.lens import logit_lens
from obscura_jax.nn.attention import check_length
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.token_ids import validate_sequences

ALTERNATIVES = 5  # most probable tokens that are kept where not all logits are


class Prediction(NamedTuple):
    """A prediction of the token after each position; "..." are the axes of the field it is in.

    Attributes:
        ids: the most probable tokens, (..., T, K), the best first.
        probs: their probabilities, (..., T, K).
        target_rank: the number of tokens more probable than the target, (..., T).
        target_logprob: the log-probability of the target, (..., T).
    """

    ids: Any
    probs: Any
    target_rank: Any
    target_logprob: Any


class Ablations(NamedTuple):
    """The predictions of the model without a part, and how that changes the target's probability.

    Attributes:
        heads: without each attention head, axes (L, H).
        feed_forward: without the feed-forward layers of each block, axis (L,).
        heads_change: the change of the target's log-probability, (L, H, T): without the head, minus
            with it. A negative change means that the head made the target more probable.
        feed_forward_change: the same for the feed-forward layers, (L, T).
    """

    heads: Prediction
    feed_forward: Prediction
    heads_change: Any
    feed_forward_change: Any


@dataclass(frozen=True)
class Inside:
    """The values that a model computes for one text, as NumPy arrays.

    Attributes:
        ids: the token ids, (T,).
        target: the token after each position, (T,): the next one of the text, and for the last
            position the most probable one.
        logits: the model's logits, (T, V).
        prediction: what they say about the target.
        lens: what the logit lens says, (L + 1, ...): of the embeddings, then after each block.
        attention: the weights of each head, (L, H, T, T): query by key.
        head_scores: the name of a score -> its value for each head, (L, H); see `look.head_scores`.
        residual_norm: the norm of the residual stream, (L + 1, T).
        attribution: the parts of the target's logit.
        ablations: the effect of taking out each part, or None if it was not computed.
    """

    ids: np.ndarray
    target: np.ndarray
    logits: np.ndarray
    prediction: Prediction
    lens: Prediction
    attention: np.ndarray
    head_scores: dict[str, np.ndarray]
    residual_norm: np.ndarray
    attribution: Attribution
    ablations: Ablations | None


def inside(
    model: GPTModel, params: Any, ids: Sequence[int] | ArrayLike, *, ablate: bool = True
) -> Inside:
    """Run a model on one text and return what it computes on the way.

    Args:
        model: the model.
        params: its parameters.
        ids: the token ids of the text, (T,), from 1 to `context_length`.
        ablate: whether to run the model once more without each head and each block's feed-forward
            layers: L * (H + 1) times in all.

    Returns:
        The values on the host. The programs are compiled for T rounded up to a power of two, and
        used again for other texts.

    Raises:
        ValueError: if there are no ids, too many, or ids outside the vocabulary, or if logits are
            NaN or infinite.
    """
    padded, length = _pad(model, ids)
    seen = jax.device_get(_look(model, params, padded, length))
    logits = seen.logits[:length]
    check_finite(not np.isfinite(logits).all())
    return Inside(
        ids=padded[:length],
        target=seen.target[:length],
        logits=logits,
        prediction=_first(seen.prediction, length),
        lens=_first(seen.lens, length),
        attention=seen.attention[..., :length, :length],
        head_scores=seen.head_scores,
        residual_norm=seen.residual_norm[:, :length],
        attribution=Attribution(*(part[..., :length] for part in seen.attribution)),
        ablations=ablate_parts(model, params, ids) if ablate else None,
    )


def ablate_parts(
    model: GPTModel,
    params: Any,
    ids: Sequence[int] | ArrayLike,
    after_block: Callable[[], object] = lambda: None,
) -> Ablations:
    """Return the ablations of `inside`, which take most of its time.

    `after_block` is called after each block of the model; what it raises ends the work.
    """
    padded, length = _pad(model, ids)
    target, logprob = _whole(model, params, padded, length)
    found = []
    for block in range(model.cfg.n_layers):
        found.append(jax.device_get(_ablate(model, params, padded, target, block)))
        after_block()
    blocks: Any = jax.tree.map(lambda *arrays: np.stack(arrays), *found)
    heads, feed_forward = (_first(part, length) for part in blocks)
    whole = np.asarray(logprob)[:length]
    return Ablations(
        heads=heads,
        feed_forward=feed_forward,
        heads_change=heads.target_logprob - whole,
        feed_forward_change=feed_forward.target_logprob - whole,
    )


class _Seen(NamedTuple):
    """The fields of `Inside`, with padding."""

    target: Array
    logits: Array
    prediction: Prediction
    lens: Prediction
    attention: Array
    head_scores: dict[str, Array]
    residual_norm: Array
    attribution: Attribution


@partial(jax.jit, static_argnames="model")
def _look(model: GPTModel, params: Any, ids: Array, length: Array) -> _Seen:
    seen = read_activations(model, params, ids)
    target = _targets(ids, seen.logits, length)
    counted = jnp.where(jnp.arange(len(ids)) < length, ids, -1)

    def through_lens(residual: Array) -> Prediction:
        return _predict(logit_lens(model, params, residual), target)

    own = _predict(seen.logits, target)
    earlier = lax.map(through_lens, seen.residual[:-1])
    return _Seen(
        target=target,
        logits=seen.logits,
        prediction=own,
        lens=jax.tree.map(lambda rows, last: jnp.concatenate([rows, last[None]]), earlier, own),
        attention=seen.attention,
        head_scores={name: score(seen.attention, counted) for name, score in HEAD_SCORES.items()},
        residual_norm=jnp.linalg.norm(seen.residual, axis=-1),
        attribution=direct_logit_attribution(model, params, seen, target),
    )


@partial(jax.jit, static_argnames="model")
def _whole(model: GPTModel, params: Any, ids: Array, length: Array) -> tuple[Array, Array]:
    """Return the targets, and their log-probabilities under the whole model."""
    logits: Any = model.apply({"params": params}, ids)
    target = _targets(ids, logits, length)
    return target, log_probability(logits, target)


@partial(jax.jit, static_argnames="model")
def _ablate(
    model: GPTModel, params: Any, ids: Array, target: Array, block: Array
) -> tuple[Prediction, Prediction]:
    """Return the predictions without each head of a block, and without its feed-forward layers."""

    def reduce(logits: Array) -> Prediction:
        return _predict(logits, target)

    return block_ablations(model, params, ids, block, reduce)


def _targets(ids: Array, logits: Array, length: Array) -> Array:
    """Return the next id at each position; at the last one of the text the most probable one."""
    is_last = jnp.arange(len(ids)) == length - 1
    return jnp.where(is_last, greedy(logits), jnp.roll(ids, -1))


def _predict(logits: Array, target: Array) -> Prediction:
    values, ids = lax.top_k(logits, min(ALTERNATIVES, logits.shape[-1]))
    normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    own = jnp.take_along_axis(logits, target[:, None], axis=-1)
    return Prediction(
        ids=ids,
        probs=jnp.exp(values - normalizer),
        target_rank=(logits > own).sum(axis=-1, dtype=jnp.int32),
        target_logprob=(own - normalizer)[:, 0],
    )


def _first(prediction: Prediction, length: int) -> Prediction:
    """Return the prediction at the first `length` positions."""
    ids, probs, rank, logprob = prediction
    cut = (ids[..., :length, :], probs[..., :length, :], rank[..., :length], logprob[..., :length])
    return Prediction(*cut)


def _pad(model: GPTModel, ids: Sequence[int] | ArrayLike) -> tuple[np.ndarray, int]:
    """Return checked ids, padded on the right to a bucket's length, and how many there are."""
    cfg = model.cfg
    checked = np.asarray(validate_sequences(ids, cfg.vocab_size))
    if checked.ndim > 1:
        raise ValueError(f"the token ids of one text must be a flat list, got {checked.shape}")
    length = len(checked)
    check_length(length, cfg.context_length)
    padded = np.zeros(bucket_length(length, cfg.context_length), np.int32)
    padded[:length] = checked
    return padded, length
