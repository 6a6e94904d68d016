"""`generate`: prompts of any lengths in, new tokens out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.typing import DTypeLike

from obscura_jax.decoding.alternatives import alternative_counts, reported
from obscura_jax.decoding.cache import NO_CACHE
from obscura_jax.decoding.controls import BiasPerRow, Controls
from obscura_jax.decoding.per_row import FloatPerRow, IdsPerRow, IntPerRow
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.request import GenerationOptions
from obscura_jax.decoding.run import start
from obscura_jax.decoding.sampling import Sampling
from obscura_jax.decoding.state import check_finite
from obscura_jax.nn.model import GPTModel

_TOKENS_PER_CHUNK = 256  # Python notices Ctrl-C between chunks


@dataclass(frozen=True)
class Stats:
    """Counts and times of one call of `generate`.

    Attributes:
        prompt_tokens: number of tokens in all prompts.
        new_tokens: number of tokens returned, in all rows.
        prefill_seconds: seconds until every row had its first token.
        decode_seconds: seconds for all other tokens.
        n_compilations: programs compiled during the call; their time is part of the seconds.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    n_compilations: int


@dataclass(frozen=True)
class GenerateOutput:
    """The new tokens of each row.

    Attributes:
        tokens: their ids, without the stop id.
        logprobs: the log-probability of each token under the model, before temperature and filters.
        finish_reasons: "stop" for a row that ended at a stop id, else "length".
        stats: counts and times of the call.
        top_logprobs: for each token of each row, the most probable tokens as (id, log-probability),
            the most probable first; None if `top_logprobs` was not asked for.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish_reasons: list[str]
    stats: Stats
    top_logprobs: list[list[list[tuple[int, float]]]] | None = None


def generate(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    *,
    temperature: FloatPerRow = 0.0,
    top_k: IntPerRow = None,
    top_p: FloatPerRow = None,
    min_p: FloatPerRow = None,
    key: jax.Array | None = None,
    stop_ids: IdsPerRow = (),
    logit_bias: BiasPerRow = None,
    banned_ids: IdsPerRow = (),
    repetition_penalty: FloatPerRow = None,
    frequency_penalty: FloatPerRow = None,
    presence_penalty: FloatPerRow = None,
    min_new_tokens: IntPerRow = None,
    top_logprobs: IntPerRow = None,
    dtype: DTypeLike | None = None,
    sliding_window: bool = False,
    programs: GenerationPrograms = DEFAULT_PROGRAMS,
) -> GenerateOutput:
    """Continue each prompt with a key-value cache, in one compiled loop.

    In float32 a prompt gets the same tokens alone and in any batch, whether greedy or sampled with
    the same key. In bfloat16 the rounding of a product depends on the number of rows, so a few rows
    may differ. Sampling settings are one value for all rows, or a list with one value per row.

    Args:
        model: the model.
        params: its parameters.
        prompts: one list of token ids per row; lengths may differ.
        max_new_tokens: maximum number of new tokens per row. By default 64, or fewer if less room
            is left in the context after the longest prompt.
        temperature: 0 takes the most probable token; above 0, tokens are sampled.
        top_k: keep the k most probable tokens, and tokens as probable as the last of them.
        top_p: keep the fewest most probable tokens whose probabilities sum to p, in (0, 1].
        min_p: keep tokens at least min_p times as probable as the most probable one, in [0, 1).
        key: a typed key for all rows, or an array of one per row. The token at position p of a row
            is sampled with `fold_in(key, p)`, so equal prompts with one key get equal tokens.
        stop_ids: ids that end a row: one list for all rows, or one list per row.
        logit_bias: a mapping from ids to numbers that are added to their logits; see `Controls`,
            which has the ranges and the order of this and the next five.
        banned_ids: ids that are never sampled: one list for all rows, or one list per row.
        repetition_penalty: above 1, make tokens of the prompt and the new tokens less probable.
        frequency_penalty: subtract it from a logit once for each time that its token is new.
        presence_penalty: subtract it from a logit once if its token is among the new tokens.
        min_new_tokens: sample no stop id among this many new tokens.
        top_logprobs: return this many most probable tokens at each position, at most 20.
        dtype: type to compute in, float32 or bfloat16; by default the type of `params`. Logits and
            softmax are at least float32.
        sliding_window: continue beyond `context_length` instead of raising an error. Each step
            then runs the model on the last `context_length` tokens, with positions counted from
            the first of them, as the course does.
        programs: the programs to run: by default for one device; others come from
            `scale.generation.mesh_programs` and `export.artifact.load_artifact`.

    Raises:
        ValueError: for an empty batch or prompt, ids outside the vocabulary, settings out of range,
            sampling without a key, a row that bans every token, more tokens than fit in the
            context, or logits that are NaN or infinite.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p)
    controls = Controls(
        logit_bias,
        banned_ids,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        min_new_tokens,
    )
    options = GenerationOptions(
        sampling, key, stop_ids, dtype, sliding_window, programs, controls, top_logprobs
    )
    return generate_with_options(model, params, prompts, max_new_tokens, options)


def generate_with_options(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    options: GenerationOptions,
) -> GenerateOutput:
    """Do the work of `generate`, with its keyword arguments as one value."""
    before, began = options.programs.n_compilations(), time.perf_counter()
    states = start(model, params, prompts, max_new_tokens, options, _TOKENS_PER_CHUNK)
    state = next(states)
    state.count.block_until_ready()
    prefilled = time.perf_counter()
    for state in states:  # noqa: B007 - the last one is used below
        pass
    state = jax.device_get(replace(state, cache=NO_CACHE, prompts=None))
    ended = time.perf_counter()
    check_finite(state.nonfinite)

    def kept(table: Any) -> list[list[Any]]:
        return [row[:n].tolist() for row, n in zip(table, state.n_kept, strict=True)]

    top_logprobs = None
    if state.alternatives is not None:
        counts = alternative_counts(options.top_logprobs, len(prompts), model.cfg.vocab_size)
        top_logprobs = [
            reported(state.alternatives, row, length, count)
            for row, (length, count) in enumerate(zip(state.n_kept, counts, strict=True))
        ]
    return GenerateOutput(
        tokens=kept(state.tokens),
        logprobs=kept(state.logprobs),
        finish_reasons=["stop" if done else "length" for done in state.done],
        stats=Stats(
            prompt_tokens=sum(map(len, prompts)),
            new_tokens=int(state.n_kept.sum()),
            prefill_seconds=prefilled - began,
            decode_seconds=ended - prefilled,
            n_compilations=options.programs.n_compilations() - before,
        ),
        top_logprobs=top_logprobs,
    )
