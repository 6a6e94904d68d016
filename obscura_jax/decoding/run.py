"""Run the programs of generation for a call, some tokens at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from obscura_jax.decoding.cache import NO_CACHE, bucket_length
from obscura_jax.decoding.programs import GenerationPrograms
from obscura_jax.decoding.request import GenerationOptions, Plan, plan_generation
from obscura_jax.decoding.state import State, initial_state
from obscura_jax.nn.dtypes import cast_params
from obscura_jax.nn.model import GPTModel


def start(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None,
    options: GenerationOptions,
    tokens_per_chunk: int,
) -> Iterator[State]:
    """Check a call, and return the iterator of its states; see `run_plan`."""
    checked = plan_generation(model.cfg, prompts, max_new_tokens, options)
    params = cast_params(params, options.dtype)
    return run_plan(model, params, checked, options.programs, tokens_per_chunk)


def run_plan(
    model: GPTModel, params: Any, plan: Plan, programs: GenerationPrograms, tokens_per_chunk: int
) -> Iterator[State]:
    """Yield the state after the first token, then after every `tokens_per_chunk` more.

    Stop when all rows have ended. Each state's buffers are reused when the next one is requested.
    """
    rows, width = plan.prompts.shape
    request, new, context = plan.request, plan.new_tokens, model.cfg.context_length
    cached = min(new, context - plan.longest + 1)  # number of tokens that the cache can serve
    count = 0
    if cached > 0:
        slots = max(bucket_length(plan.longest + cached - 1, context), width)
        capacity = slots if cached == new else bucket_length(new)
        sizes = (slots, capacity, plan.n_alternatives)
        state = programs.prefill(model, params, request, plan.prompts, *sizes)
        count = 1
        yield state
    else:
        state = initial_state(rows, bucket_length(new), n_alternatives=plan.n_alternatives)
    while count < new and not _ended(state):
        count = min(count + tokens_per_chunk, cached if count < cached else new)
        target_count = jnp.asarray(count, jnp.int32)
        if count <= cached:
            state = programs.decode(model, params, request, state, target_count)
        else:
            state = replace(state, cache=NO_CACHE, prompts=None)
            state = programs.slide(model, params, request, state, target_count, plan.prompts)
        yield state


def _ended(state: State) -> bool:
    done, nonfinite = jax.device_get((state.done, state.nonfinite))
    return bool(done.all() or nonfinite)
