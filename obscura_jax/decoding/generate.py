"""`generate`: prompts of any lengths in, new tokens out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike

from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.request import PerRow, PerRowInt, check_finite, plan, run
from obscura_jax.nn.model import GPTModel

_CHUNK = 256  # tokens between two moments at which Python notices Ctrl-C


@dataclass(frozen=True)
class Stats:
    """What a call of `generate` did.

    Attributes:
        prompt_tokens: tokens in all prompts.
        new_tokens: tokens given back, in all rows.
        prefill_seconds: until the first token of each row stood.
        decode_seconds: for all tokens after those.
        compiled: programs compiled in this call; their time is part of the seconds.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    compiled: int


@dataclass(frozen=True)
class GenerateOutput:
    """The new tokens of each row.

    Attributes:
        tokens: their ids, the stop id excluded.
        logprobs: the log-probability of each under the model, before temperature and filters.
        finish: "stop" for a row that ended in a stop id, else "length".
        stats: what the call did.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish: list[str]
    stats: Stats


def generate(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    *,
    temperature: PerRow = 0.0,
    top_k: PerRowInt = None,
    top_p: PerRow = None,
    min_p: PerRow = None,
    key: jax.Array | None = None,
    stop_ids: Sequence[int] | Sequence[Sequence[int]] = (),
    dtype: DTypeLike | None = None,
    sliding_window: bool = False,
    programs: GenerationPrograms = DEFAULT_PROGRAMS,
) -> GenerateOutput:
    """Continue each prompt with a key-value cache, in one compiled loop.

    In float32 a prompt's tokens are the same alone, in any batch, in any row, whatever the lengths
    of its neighbors: greedy, and sampled with the same key. In bfloat16 the rounding of a product
    depends on the number of rows, so a few rows may differ. A setting given as a list holds one
    value for each row. Filters apply in the order temperature, top-k, top-p, min-p.

    Args:
        model: the model.
        params: its parameters.
        prompts: one list of token ids for each row; lengths may differ.
        max_new_tokens: the largest number of new tokens in a row. By default 64, or fewer if less
            room is left in the context after the longest prompt.
        temperature: 0 takes the most probable token; above 0 tokens are drawn.
        top_k: draw from the k most probable tokens (with those tied to the last of them).
        top_p: draw from the fewest most probable tokens whose probabilities reach p, in (0, 1].
        min_p: draw from tokens at least min_p times as probable as the most probable, in [0, 1).
        key: a typed key for all rows, or an array of one for each row. The token at position p of
            a row is drawn with `fold_in(key, p)`; equal prompts with one key get equal tokens.
        stop_ids: ids that end a row: one list for all rows, or a list for each.
        dtype: the number type to compute in, float32 or bfloat16; by default that of `params`.
            Logits and softmax are float32 at least.
        sliding_window: go on beyond `context_length`: each step re-reads the last
            `context_length` tokens with fresh positions, as the course does. Without it that is an
            error.
        programs: what to run: by default compiled for one device, or as `scale` makes them.

    Raises:
        ValueError: for an empty batch or prompt, ids outside the vocabulary, settings out of range,
            sampling without a key, more tokens than fit in the context, or logits that are NaN or
            infinite.
    """
    before = programs.compiled()
    start = time.perf_counter()
    call = plan(
        model,
        params,
        prompts,
        max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        key=key,
        stop_ids=stop_ids,
        dtype=dtype,
        sliding_window=sliding_window,
        programs=programs,
    )
    states = run(call, tokens_per_chunk=_CHUNK)
    state = next(states)
    state.count.block_until_ready()
    first = time.perf_counter()
    for state in states:  # noqa: B007 - the last one counts
        pass
    made, done, broken, drawn, logprobs = jax.device_get(
        (state.made, state.done, state.broken, state.tokens, state.logprobs)
    )
    end = time.perf_counter()
    check_finite(broken)
    tokens = [row[:n].tolist() for row, n in zip(drawn, made, strict=True)]
    stats = Stats(
        prompt_tokens=sum(map(len, prompts)),
        new_tokens=int(made.sum()),
        prefill_seconds=first - start,
        decode_seconds=end - first,
        compiled=programs.compiled() - before,
    )
    return GenerateOutput(
        tokens=tokens,
        logprobs=[row[:n].tolist() for row, n in zip(logprobs, made, strict=True)],
        finish=["stop" if stopped else "length" for stopped in done],
        stats=stats,
    )
