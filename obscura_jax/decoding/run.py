"""Run the programs of generation for a call, some tokens at a time."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from obscura_jax.decoding.cache import NO_CACHE, bucket_length
from obscura_jax.decoding.programs import GenerationPrograms
from obscura_jax.decoding.request import Plan
from obscura_jax.decoding.state import State, initial_state
from obscura_jax.nn.model import GPTModel


def run_plan(
    model: GPTModel, params: Any, plan: Plan, programs: GenerationPrograms, tokens_per_chunk: int
) -> Iterator[State]:
    """Yield the state after the first token, then after every `tokens_per_chunk` more.

    Stop when all rows have ended. Each state's buffers are reused when the next one is requested.
    """
    request, new, context = plan.request, plan.new_tokens, model.cfg.context_length
    cached = min(new, context - plan.longest + 1)  # number of tokens that the cache can serve
    count = 0
    if cached > 0:
        state = _read_prompts(model, params, plan, programs, cached)
        count = 1
        yield state
    else:
        rows = len(request.lengths)
        state = initial_state(rows, bucket_length(new), n_alternatives=plan.n_alternatives)
    while count < new and not has_ended(state):
        count = min(count + tokens_per_chunk, cached if count < cached else new)
        target_count = jnp.asarray(count, jnp.int32)
        if count <= cached:
            state = programs.decode(model, params, request, state, target_count)
        else:
            state = replace(state, cache=NO_CACHE, prompts=None)
            prompts = jnp.asarray(np.repeat(plan.prompts, plan.samples, axis=0))
            state = programs.slide(model, params, request, state, target_count, prompts)
        yield state


def _read_prompts(
    model: GPTModel, params: Any, plan: Plan, programs: GenerationPrograms, cached: int
) -> State:
    """Return the state after the first token, with room in the cache for `cached` tokens."""
    width, context = plan.prompts.shape[1], model.cfg.context_length
    slots = max(bucket_length(plan.longest + cached - 1, context), width)
    capacity = slots if cached == plan.new_tokens else bucket_length(plan.new_tokens)
    if plan.prefix is None:
        prompts = jnp.asarray(plan.prompts)
        sizes = (slots, capacity, plan.n_alternatives)
        return programs.prefill(model, params, plan.request, prompts, *sizes)
    start = len(plan.prefix.ids)
    rest = np.zeros(
        (len(plan.lengths), bucket_length(plan.longest - start, context - start)), np.int32
    )
    after = plan.prompts[:, start : start + rest.shape[1]]
    rest[:, : after.shape[1]] = after
    needed = max(slots, plan.prefix.cache.keys[0].shape[-2], start + rest.shape[1])
    known = np.zeros((len(plan.lengths), bucket_length(needed, context)), np.int32)
    known[:, :width] = plan.prompts
    return programs.prefill_after(
        model,
        params,
        plan.request,
        jnp.asarray(rest),
        plan.prefix.cache,
        jnp.asarray(start, jnp.int32),
        jnp.asarray(known),
        capacity,
        plan.n_alternatives,
    )


def has_ended(state: State) -> bool:
    """Return whether no row can have another token."""
    done, nonfinite = jax.device_get((state.done, state.nonfinite))
    return bool(done.all() or nonfinite)
