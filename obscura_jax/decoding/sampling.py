"""logits -> ids: greedy, temperature, top-k, top-p, min-p as pure functions; every setting is data.

A row's token depends on its own logits, settings and key only: it is the same alone and in any
batch. The filters run in one order, each on what the one before has left, renormalised:
temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024). A filter writes -inf
over what it excludes, never over the most probable token, and treats equal logits alike. A setting
that is off is a value too, so no value compiles anew.

Axes: B rows of the batch, V vocabulary. Logits are float32; -inf in them excludes a token.

Milliseconds, here and below: XLA:CPU, 2 cores, V = 50257, B = 1 and B = 8, compilation apart.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int, Int32, Key, UInt32

from obscura_jax.nn.target import target

Logits = Float32[Array, "b v"]
PerRow = Float32[Array, " b"]

_LANES = 128  # the width of the lines in which noise is drawn
_PREFIX = 128  # up to this k, `lax.top_k` is faster than the search
_TINY = float(jnp.finfo(jnp.float32).tiny)
_LARGEST = float(jnp.finfo(jnp.float32).max)


class Settings(NamedTuple):
    """How each row is sampled: a pytree of (B,) arrays, made and checked by `settings`."""

    temperature: PerRow  # 0 is greedy
    top_k: Int32[Array, " b"]  # V is off
    top_p: PerRow  # 1 is off
    min_p: PerRow  # 0 is off


def settings(
    batch: int,
    vocab_size: int,
    *,
    temperature: float | Sequence[float | None] | None = 0.0,
    top_k: int | Sequence[int | None] | None = None,
    top_p: float | Sequence[float | None] | None = None,
    min_p: float | Sequence[float | None] | None = None,
) -> Settings:
    """Check settings on the host: one value for all `batch` rows, or a list with one for each.

    None, also inside a list, is off; a temperature that is off is 0, greedy.

    Raises:
        ValueError: names the setting, the row if listed, and the value, for a temperature that is
            negative or above the largest float32, a top_k that is not whole or outside 1 to V,
            top_p outside (0, 1], min_p outside [0, 1), or a list of another length than `batch`.
    """

    def plain(x: Any) -> Any:
        return x.tolist() if hasattr(x, "tolist") else x  # NumPy's and JAX's numbers

    def column(name: str, off: Any, accepts: Callable[[Any], bool], words: str) -> Array:
        value = plain(given[name])
        listed = isinstance(value, list | tuple)
        rows = [plain(x) for x in value] if listed else [value] * batch
        if len(rows) != batch:
            raise ValueError(f"{name} lists {len(rows)} values for {batch} rows")
        for row, x in enumerate(rows):
            number = isinstance(x, Real) and not isinstance(x, bool)
            if not (x is None or (number and accepts(x))):
                where = f"{name} of row {row}" if listed else name
                raise ValueError(f"{where} must be {words}, got {x!r}")
        dtype = np.int32 if name == "top_k" else np.float32
        return jnp.asarray(np.array([off if x is None else x for x in rows], dtype))

    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    whole = f"a whole number from 1 to {vocab_size}, the size of the vocabulary"
    return Settings(
        column("temperature", 0, lambda t: 0 <= t <= _LARGEST, f"from 0 to {_LARGEST:.4g}"),
        column("top_k", vocab_size, lambda k: isinstance(k, int) and 1 <= k <= vocab_size, whole),
        column("top_p", 1, lambda p: 0 < p <= 1, "a number in (0, 1]"),
        column("min_p", 0, lambda m: 0 <= m < 1, "a number in [0, 1)"),
    )


def sample(logits: Logits, settings: Settings, keys: Key[Array, " b"]) -> Int32[Array, " b"]:
    """The next token of each row: greedy at temperature 0, else drawn with the row's own typed key.

    A draw is Gumbel-max: argmax(filtered logits + Gumbel noise) has their softmax as distribution.
    NaN logits, and where a row is drawn also +inf, give V, an id outside the vocabulary.

    0.15 and 0.35 ms if all rows are greedy; a draw 0.5 and 1.4; with top-k 50 0.65 and 2.5, with
    top-p 0.9 1.2 and 4.1, with both 1.4 and 5.2.
    """

    def draw() -> tuple[Array, Array]:
        return filter_logits(logits, settings), gumbel_noise(keys, logits.shape[1])

    # A cond leaves out the work of settings that no row uses, as long as nothing vmaps over it. The
    # noise leaves the branch unused: an addition or argmax within it adds 0.7 ms at B = 1.
    drawn = settings.temperature > 0
    kept, noise = lax.cond(jnp.any(drawn), draw, lambda: (logits, jnp.zeros_like(logits)))
    return greedy(jnp.where(drawn[:, None], kept + noise, logits))


def greedy(logits: Float[Array, "b v"]) -> Int32[Array, " b"]:
    """The id of the largest logit, the lowest id among equals; V if the row holds NaN.

    0.13 and 0.35 ms; `jnp.argmax` takes 0.3 and 0.95 to 1.9.
    """
    ids = lax.broadcasted_iota(jnp.int32, logits.shape, 1)
    largest = logits.max(axis=1, keepdims=True)
    return jnp.where(logits == largest, ids, logits.shape[1]).min(axis=1)


def log_probability(logits: Float[Array, "b v"], tokens: Int[Array, " b"]) -> PerRow:
    """log softmax(logits) at the tokens: under the model itself, before temperature and filters."""
    shifted = logits.astype(jnp.float32)
    shifted = shifted - shifted.max(axis=1, keepdims=True)
    chosen = jnp.take_along_axis(shifted, tokens[:, None], axis=1)[:, 0]
    return chosen - jnp.log(jnp.exp(shifted).sum(axis=1))


def filter_logits(logits: Logits, settings: Settings) -> Logits:
    """Temperature, then top-k, then top-p, then min-p."""
    logits = scale_by_temperature(logits, settings.temperature)
    logits = keep_top_k(logits, settings.top_k)
    logits = keep_top_p(logits, settings.top_p)
    return keep_min_p(logits, settings.min_p)


def scale_by_temperature(logits: Logits, temperature: PerRow) -> Logits:
    """(logits - their maximum) / temperature, so that none overflows; as they are where it is 0."""
    t = temperature[:, None]
    shifted = logits - logits.max(axis=1, keepdims=True)
    return jnp.where(t > 0, shifted / jnp.maximum(t, _TINY), logits)


def keep_top_k(logits: Logits, top_k: Int32[Array, " b"]) -> Logits:
    """Keep what is at least the k-th largest logit: more than k tokens where others equal it."""
    vocab_size = logits.shape[1]
    prefix = min(_PREFIX, vocab_size)

    def kth_of_prefix() -> Array:
        values, _ = lax.top_k(logits, prefix)
        return jnp.take_along_axis(values, jnp.minimum(top_k, prefix)[:, None] - 1, axis=1)[:, 0]

    def kth_by_search() -> Array:
        ones = jnp.ones(logits.shape, jnp.uint32)
        return _threshold(logits, ones, top_k.astype(jnp.uint32))

    def keep() -> Array:
        if target().many:  # the partitioner would gather all logits for `lax.top_k`
            return _drop_below(logits, jnp.where(top_k < vocab_size, kth_by_search(), -jnp.inf))
        short = jnp.all((top_k <= prefix) | (top_k >= vocab_size))
        kth = lax.cond(short, kth_of_prefix, kth_by_search)
        return _drop_below(logits, jnp.where(top_k < vocab_size, kth, -jnp.inf))

    return lax.cond(jnp.any(top_k < vocab_size), keep, lambda: logits)


def keep_top_p(logits: Logits, top_p: PerRow) -> Logits:
    """Keep the fewest most probable tokens that reach p together, with all that equal the last.

    Reached up to rounding, about 1e-7, and rounded alike in any batch: probabilities are summed as
    whole numbers, in a unit of 2^-31 to 2^-30. XLA orders a float sum by the shape of the batch.
    """

    def keep() -> Array:
        weights = jnp.exp(logits - logits.max(axis=1, keepdims=True))
        # The power of two below the sum: a unit that the order of the sum does not change.
        exponent = lax.bitcast_convert_type(weights.sum(axis=1), jnp.uint32) & 0x7F800000
        unit = lax.bitcast_convert_type(exponent, jnp.float32) * 2.0**-30
        mass = jnp.round(weights / unit[:, None]).astype(jnp.uint32)
        total = mass.sum(axis=1, dtype=jnp.uint32)  # at most 2^31 + V / 2
        enough = jnp.ceil(top_p * total.astype(jnp.float32)).astype(jnp.uint32)
        last = _threshold(logits, mass, jnp.clip(enough, 1, total))
        return _drop_below(logits, jnp.where(top_p < 1, last, -jnp.inf))

    return lax.cond(jnp.any(top_p < 1), keep, lambda: logits)


def keep_min_p(logits: Logits, min_p: PerRow) -> Logits:
    """Keep tokens at least `min_p` times as probable as the most probable one."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return jnp.where(shifted < jnp.log(min_p)[:, None], -jnp.inf, logits)


def gumbel_noise(keys: Key[Array, " b"], vocab_size: int) -> Logits:
    """`jax.random.gumbel(key, (V,))` for each key, bit for bit.

    Drawn in lines, as a row of JAX's default generator is a prefix of every longer one: 0.35 and
    1.2 ms; in one piece 1.2 to 2.1 and 1.2.
    """
    lines = -(-vocab_size // _LANES)

    def noise(key: Array) -> Array:
        return jax.random.gumbel(key, (lines, _LANES), jnp.float32).reshape(-1)[:vocab_size]

    return for_each_key(noise, keys)


def for_each_key(function: Callable[..., Array], keys: Key[Array, " b"], *rows: Array) -> Array:
    """Return `function(key, *row)` of each key and row, stacked; a row never affects another.

    JAX's default generator is mapped over all keys at once. What the others (`rbg`, `unsafe_rbg`)
    draw under `vmap` depends on the batch, so those keys are used one after another.
    """
    if str(jax.random.key_impl(keys)) == "threefry2x32":
        return jax.vmap(function)(keys, *rows)
    return lax.map(lambda one: function(*one), (keys, *rows))


def _threshold(
    logits: Logits, weights: UInt32[Array, "b v"], enough: UInt32[Array, " b"]
) -> PerRow:
    """The largest t of each row for which the weights of the logits >= t sum to `enough`.

    The bits of t are found from the highest down, in 32 passes over V: exact.

    0.5 and 2.7 ms, 1.2 and 3.0 with all of top-p; for that `sort` and a cumulative sum take 10 and
    80. For top-k `sort` takes 9.4 and 75, `lax.top_k` of all V 8.2 and 68, of 128 0.1 and 0.95.
    """
    bits = lax.bitcast_convert_type(logits, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ranks = jnp.where(bits >= sign, ~bits, bits | sign)  # whole numbers in the order of the floats

    def set_bit(i: Array, found: Array) -> Array:
        tried = found | (sign >> jnp.asarray(i, jnp.uint32))
        reached = jnp.where(ranks >= tried[:, None], weights, 0).sum(axis=1, dtype=jnp.uint32)
        return jnp.where(reached >= enough, tried, found)

    found = lax.fori_loop(0, 32, set_bit, jnp.zeros(logits.shape[0], jnp.uint32))
    return lax.bitcast_convert_type(jnp.where(found >= sign, found ^ sign, ~found), jnp.float32)


def _drop_below(logits: Logits, threshold: PerRow) -> Logits:
    return jnp.where(logits < threshold[:, None], -jnp.inf, logits)  # NaN stays, to be noticed
