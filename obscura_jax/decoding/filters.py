"""The filters of sampling: temperature, top-k, top-p and min-p, as functions from logits to logits.

A filter sets excluded logits to -inf, never excludes the most probable token, and treats equal
logits equally. Its setting is traced, one value per row, and "off" is a value as well.

Axes: B rows of the batch, V vocabulary. Logits are float32; a logit of -inf excludes its token.

Times in this file are milliseconds on XLA:CPU with 2 cores and V = 50257, first for B = 1, then for
B = 8, without compilation.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, Int32, UInt32

from obscura_jax.nn.target import current_target

Logits = Float32[Array, "b v"]
RowFloats = Float32[Array, " b"]

_DIGIT = 4  # bits of a threshold that the search sets per pass over V on CUDA: a divisor of 32
_PREFIX = 128  # up to this k, `lax.top_k` is faster than the search
_TINY = float(jnp.finfo(jnp.float32).tiny)


def scale_by_temperature(logits: Logits, temperature: RowFloats) -> Logits:
    """Return (logits - maximum) / temperature, which cannot overflow; at temperature 0, logits."""
    t = temperature[:, None]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return jnp.where(t > 0, shifted / jnp.maximum(t, _TINY), logits)


def keep_top_k(logits: Logits, top_k: Int32[Array, " b"]) -> Logits:
    """Keep logits no smaller than the k-th largest: more than k tokens if others equal it."""
    vocab_size = logits.shape[1]
    prefix = min(_PREFIX, vocab_size)

    def kth_of_prefix() -> Array:
        values, _ = lax.top_k(logits, prefix)
        return jnp.take_along_axis(values, jnp.minimum(top_k, prefix)[:, None] - 1, axis=1)[:, 0]

    def kth_by_search() -> Array:
        ones = jnp.ones(logits.shape, jnp.uint32)
        return _threshold(logits, ones, top_k.astype(jnp.uint32))

    def keep() -> Array:
        target = current_target()
        # For `lax.top_k`, the partitioner would gather all logits, and XLA:GPU would sort them.
        if target.multi_device or target.platform == "cuda":
            return _drop_below(logits, jnp.where(top_k < vocab_size, kth_by_search(), -jnp.inf))
        short = jnp.all((top_k <= prefix) | (top_k >= vocab_size))
        kth = lax.cond(short, kth_of_prefix, kth_by_search)
        return _drop_below(logits, jnp.where(top_k < vocab_size, kth, -jnp.inf))

    return lax.cond(jnp.any(top_k < vocab_size), keep, lambda: logits)


def keep_top_p(logits: Logits, top_p: RowFloats) -> Logits:
    """Keep the fewest most probable tokens that together reach probability p, and ties of the last.

    Probability p is reached up to a rounding error of about 1e-7, which is the same in any batch:
    probabilities are summed as integers, in units of 2^-31 to 2^-30, because XLA orders a float sum
    by the shape of the batch.
    """

    def keep() -> Array:
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        # The unit comes from the power of two below the sum, which summation order does not change.
        exponent = lax.bitcast_convert_type(weights.sum(axis=1), jnp.uint32) & 0x7F800000
        unit = lax.bitcast_convert_type(exponent, jnp.float32) * 2.0**-30
        mass = jnp.round(weights / unit[:, None]).astype(jnp.uint32)
        total = mass.sum(axis=1, dtype=jnp.uint32)  # at most 2^31 + V / 2
        enough = jnp.ceil(top_p * total.astype(jnp.float32)).astype(jnp.uint32)
        last = _threshold(logits, mass, jnp.clip(enough, 1, total))
        return _drop_below(logits, jnp.where(top_p < 1, last, -jnp.inf))

    return lax.cond(jnp.any(top_p < 1), keep, lambda: logits)


def keep_min_p(logits: Logits, min_p: RowFloats) -> Logits:
    """Keep tokens at least `min_p` times as probable as the most probable one."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return jnp.where(shifted < jnp.log(min_p)[:, None], -jnp.inf, logits)


def _threshold(
    logits: Logits, weights: UInt32[Array, "b v"], enough: UInt32[Array, " b"]
) -> RowFloats:
    """Return, for each row, the largest t for which the weights of logits >= t sum to `enough`.

    An exact binary search that sets the 32 bits of t from the highest down, in 32 passes over V; on
    CUDA, where the host or a graph must run each turn of a loop, `_DIGIT` bits per pass, without a
    loop. The sums are of integers, so that all forms return the same.

    Takes 0.5 and 2.7 ms, or 1.2 and 3.0 including the rest of top-p; a sort and a cumulative sum
    take 10 and 80 for the same. For top-k, a sort takes 9.4 and 75, `lax.top_k` of all V 8.2 and
    68, and of 128 values 0.1 and 0.95.
    """
    bits = lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ranks = jnp.where(bits >= sign, ~bits, bits | sign)  # integers in the order of the floats

    def set_bit(i: Array, found: Array) -> Array:
        tried = found | (sign >> jnp.asarray(i, jnp.uint32))
        reached = jnp.where(ranks >= tried[:, None], weights, 0).sum(axis=1, dtype=jnp.uint32)
        return jnp.where(reached >= enough, tried, found)

    def set_digit(found: Array, shift: int) -> Array:
        digits = jnp.arange(1, 1 << _DIGIT, dtype=jnp.uint32)[None] << shift
        tried = (found[:, None] | digits)[:, :, None]
        sums = jnp.where(ranks[:, None] >= tried, weights[:, None], 0).sum(axis=2, dtype=jnp.uint32)
        # The sums fall as the digit grows, so the digit is the number of sums that are enough.
        digit = (sums >= enough[:, None]).sum(axis=1, dtype=jnp.uint32)
        return found | (digit << shift)

    found = jnp.zeros(logits.shape[0], jnp.uint32)
    if current_target().platform == "cuda":
        for shift in range(32 - _DIGIT, -1, -_DIGIT):
            found = set_digit(found, shift)
    else:
        found = lax.fori_loop(0, 32, set_bit, found)
    return lax.bitcast_convert_type(jnp.where(found >= sign, found ^ sign, ~found), jnp.float32)


def _drop_below(logits: Logits, threshold: RowFloats) -> Logits:
    return jnp.where(logits < threshold[:, None], -jnp.inf, logits)  # keeps NaN, for later checks
