"""The programs of generation: read the prompts, decode in a loop, slide past the context.

Each program is a pure function `program(model, params, request, ...)` that returns a `State`. The
jitted `GenerationPrograms` compile once per model, number of rows and set of array lengths, of
which there are few. `generate` and `stream` call nothing else.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from obscura_jax.decoding.cache import CacheLayout, KVCache, target_layout
from obscura_jax.decoding.cached_forward import decode_step, prefill_cache
from obscura_jax.decoding.fused import fuse_qkv
from obscura_jax.decoding.graphs import JitWithOptions, decode_options
from obscura_jax.decoding.qkv_cache import from_qkv_cache, to_qkv_cache
from obscura_jax.decoding.state import Request, State, initial_state
from obscura_jax.decoding.token_loop import decode_tokens, sample_next
from obscura_jax.nn.dtypes import compute_dtype
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.target import on_one_gpu


def prefill(
    model: GPTModel,
    params: Any,
    request: Request,
    prompts: Int[Array, "p t"],
    slots: int,
    capacity: int,
    n_alternatives: int = 0,
) -> State:
    """Read prompts (P, T), padded on the right, and sample the first token of each of B rows.

    B is P, or a multiple of it: that many rows continue each prompt. The cache has `slots` slots,
    at least T; the state holds up to `capacity` sampled tokens, and the `n_alternatives` most
    probable tokens at each of their positions.
    """
    count, width = prompts.shape
    rows = request.lengths.shape[0]
    cache = _layout(model, params).empty(count, slots)
    state = initial_state(rows, capacity, cache, n_alternatives=n_alternatives)
    known = jnp.pad(prompts, ((0, 0), (0, slots - width)))
    state = replace(state, prompts=_per_row(known, rows))
    return prefill_into(model, params, request, state, prompts)


def prefill_into(
    model: GPTModel, params: Any, request: Request, state: State, prompts: Int[Array, "p t"]
) -> State:
    """Read the prompts into an empty cache, and return the state after the first token."""
    lengths = _per_prompt(request.lengths, prompts)
    logits, cache = prefill_cache(model, params, prompts, lengths, state.cache)
    return _first_token(model, params, request, state, logits, cache)


def prefill_after(
    model: GPTModel,
    params: Any,
    request: Request,
    prompts: Int[Array, "p t"],
    prefix: KVCache,
    start: Int[Array, ""],
    known: Int[Array, "p s"],
    capacity: int,
    n_alternatives: int = 0,
) -> State:
    """Read prompts like `prefill`, after a prefix of `start` positions that has been read.

    `prefix` is a cache of one row. `known` has the ids of the prefix and of each prompt, padded to
    the number of slots of the cache. The lengths of the request count the prefix.
    """
    layout, count = _layout(model, params), prompts.shape[0]
    cache = layout.start_with(prefix, count, known.shape[1])
    lengths = _per_prompt(request.lengths, prompts) - start
    logits, cache = prefill_cache(model, params, prompts, lengths, cache, start)
    rows = request.lengths.shape[0]
    state = initial_state(rows, capacity, n_alternatives=n_alternatives)
    state = replace(state, prompts=_per_row(known, rows))
    return _first_token(model, params, request, state, logits, cache)


def read_prefix(model: GPTModel, params: Any, ids: Int[Array, "1 t"], slots: int) -> KVCache:
    """Return a cache of one row with `ids`, padded on the right, in its first slots."""
    cache = _layout(model, params).empty(1, slots)
    _, cache = prefill_cache(model, params, ids, jnp.ones(1, jnp.int32), cache)
    return cache


def decode(
    model: GPTModel, params: Any, request: Request, state: State, target_count: Int[Array, ""]
) -> State:
    """Sample tokens until each row has `target_count` of them or all rows have ended."""
    few_kernels = on_one_gpu() and _has_one_row(request)
    if few_kernels:
        cache: Any = to_qkv_cache(state.cache)
        params, state = fuse_qkv(params), replace(state, cache=cache)
    prompt_width = request.lengths.max()
    slots = jnp.arange(jax.tree.leaves(state.cache)[0].shape[-2], dtype=jnp.int32)[None]

    def step(weights: Any, token: Array, state: State) -> tuple[Array, KVCache]:
        slot = prompt_width + state.count - 1  # where this step stores the last sampled token
        # The slots that a row attends to (#), for prompts of 3 and 5 tokens after 2 sampled ones:
        #
        #     slot    0 1 2 3 4  5 6  7 8 ...
        #     row 0   # # # . .  # #  . .       prompt_width = 5
        #     row 1   # # # # #  # #  . .       slot = 6
        visible = (slots < request.lengths[:, None]) | ((slots >= prompt_width) & (slots <= slot))
        position = request.lengths + state.count - 1
        return decode_step(model, weights, token, position, slot, visible, state.cache)

    last: Any = decode_tokens(params, request, state, target_count, step)
    return replace(last, cache=from_qkv_cache(last.cache)) if few_kernels else last


def slide(
    model: GPTModel,
    params: Any,
    request: Request,
    state: State,
    target_count: Int[Array, ""],
    prompts: Int[Array, "b t"],
) -> State:
    """Sample tokens like `decode`, but without the cache (chapter 4.7).

    Each step runs the model on the last `context_length` tokens. Cached keys would be stale: when
    the window moves, the position of every token changes.
    """
    prompt_width, window = prompts.shape[1], model.cfg.context_length

    def step(weights: Any, _: Array, state: State) -> tuple[Array, KVCache]:
        lengths = request.lengths + state.count
        start = jnp.maximum(lengths - window, 0)
        index = start[:, None] + jnp.arange(window, dtype=jnp.int32)[None]
        generated = index - request.lengths[:, None]
        prompt = jnp.take_along_axis(prompts, jnp.clip(index, 0, prompt_width - 1), axis=1)
        last = state.tokens.shape[1] - 1
        new = jnp.take_along_axis(state.tokens, jnp.clip(generated, 0, last), axis=1)
        seen = jnp.where(generated < 0, prompt, jnp.where(generated < state.count, new, 0))
        logits: Any = model.apply({"params": weights}, seen, logits_at=lengths - start - 1)
        return logits[:, 0], state.cache

    known = replace(state, prompts=prompts)
    return replace(decode_tokens(params, request, known, target_count, step), prompts=None)


@dataclass(frozen=True)
class GenerationPrograms:
    """The functions above as they are run: for one device, over a mesh, from a file.

    Attributes:
        prefill: the function of that name, compiled. So are the others.
        jitted: the `jax.jit` functions behind them, whose compilations are counted.
        have_controls: whether they apply controls and return alternatives.
    """

    prefill: Callable[[GPTModel, Any, Request, Array, int, int, int], State]
    decode: Callable[[GPTModel, Any, Request, State, Array], State]
    slide: Callable[[GPTModel, Any, Request, State, Array, Array], State]
    read_prefix: Callable[[GPTModel, Any, Array, int], KVCache]
    prefill_after: Callable[[GPTModel, Any, Request, Array, KVCache, Array, Array, int, int], State]
    jitted: tuple[Any, ...]
    have_controls: bool = True

    def n_compilations(self) -> int:
        """Return the number of programs compiled so far in this process."""
        return sum(function._cache_size() for function in self.jitted)


def jit_programs(
    wrap: Callable[[Any], Any] = lambda program: program,
    options: Callable[[int], dict[str, Any]] = lambda rows: {},
) -> GenerationPrograms:
    """Return the programs jitted, each through `wrap`, which must keep the argument names.

    `decode` is compiled with `options(rows)`, XLA's options for a number of rows; by default none.
    `decode` and `slide` reuse the buffers of the state they are given.
    """
    sizes, given = ("capacity", "n_alternatives"), ("state",)
    how: dict[str, Any] = {"static_argnames": ("model",), "donate_argnames": given}

    def for_request(model: GPTModel, params: Any, request: Request, *_: Any) -> dict[str, Any]:
        return options(request.lengths.shape[0])

    jitted: list[Any] = [
        jax.jit(wrap(prefill), static_argnames=("model", "slots", *sizes)),
        JitWithOptions(wrap(decode), for_request, **how),
        jax.jit(wrap(slide), **how),
        jax.jit(read_prefix, static_argnames=("model", "slots")),
        jax.jit(wrap(prefill_after), static_argnames=("model", *sizes)),
    ]
    prefill_jit, decode_jit, slide_jit, prefix_jit, after_jit = jitted
    return GenerationPrograms(
        prefill_jit, decode_jit, slide_jit, prefix_jit, after_jit, jitted=tuple(jitted)
    )


DEFAULT_PROGRAMS = jit_programs(options=decode_options)


def _layout(model: GPTModel, params: Any) -> CacheLayout:
    return target_layout(model.cfg, compute_dtype(params))


def _per_prompt(lengths: Int[Array, " b"], prompts: Int[Array, "p t"]) -> Int[Array, " p"]:
    """Return one entry per prompt of an array with one per row."""
    rows, count = lengths.shape[0], prompts.shape[0]
    return lengths if rows == count else lengths[:: rows // count]


def _per_row(table: Array, rows: Any) -> Array:
    """Return one row per row of the request of an array with one per prompt."""
    return table if table.shape[0] == rows else jnp.repeat(table, rows // table.shape[0], axis=0)


def _first_token(
    model: GPTModel,
    params: Any,
    request: Request,
    state: State,
    logits: Float[Array, "p v"],
    cache: KVCache,
) -> State:
    """Sample the first token of every row from the logits after each prompt."""
    rows, count = request.lengths.shape[0], logits.shape[0]
    if rows != count:
        logits = _per_row(logits, rows)
        cache = _layout(model, params).repeat(cache, count, rows // count)
    return sample_next(state, request, logits, cache)


def _has_one_row(request: Request) -> bool:
    rows = request.lengths.shape[0]  # symbolic in exported programs
    return isinstance(rows, int) and rows == 1
