"""`stream`: the tokens of `generate` in chunks, from the same compiled loop."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from obscura_jax.checks import check_size
from obscura_jax.decoding.request import DEFAULT_OPTIONS, GenerationOptions
from obscura_jax.decoding.run import start
from obscura_jax.decoding.state import State, check_finite
from obscura_jax.nn.model import GPTModel


def stream(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    tokens_per_chunk: int = 8,
) -> Iterator[list[list[int]]]:
    """Yield the tokens of `generate` while they are generated.

    Args:
        model: the model.
        params: its parameters.
        prompts: one list of token ids per row; lengths may differ.
        max_new_tokens: maximum number of new tokens per row. By default 64, or fewer if less room
            is left in the context after the longest prompt.
        options: sampling, key, stop ids and more; by default greedy.
        tokens_per_chunk: number of tokens per row to wait for. Any number runs the same compiled
            programs; a small one returns to Python more often.

    Returns:
        An iterator over chunks: the first token of each row, then up to `tokens_per_chunk` more.
        A chunk has the new ids of each of the B rows, [] for a row that has ended. Joined row by
        row, the chunks are `generate(...).tokens`.

    Raises:
        ValueError: at the call, for whatever `generate` rejects and for `tokens_per_chunk` below
            1 and `top_logprobs`; while iterating, for logits that are NaN or infinite.
    """
    if options.top_logprobs is not None:
        raise ValueError("a stream has no top_logprobs; leave it out, or use generate")
    tokens_per_chunk = check_size("tokens_per_chunk", tokens_per_chunk)
    states = start(model, params, prompts, max_new_tokens, options, tokens_per_chunk)
    return _new_ids(states, len(prompts))


def _new_ids(states: Iterator[State], rows: int) -> Iterator[list[list[int]]]:
    returned = [0] * rows
    for state in states:
        new = _ids_after(returned, state)
        returned = [old + len(ids) for old, ids in zip(returned, new, strict=True)]
        yield new


def _ids_after(returned: list[int], state: State) -> list[list[int]]:
    """Return a copy of each row's ids after its first `returned`: the buffers are reused."""
    nonfinite, n_kept, tokens = jax.device_get((state.nonfinite, state.n_kept, state.tokens))
    check_finite(nonfinite)
    return [row[a:b].tolist() for row, a, b in zip(tokens, returned, n_kept, strict=True)]
