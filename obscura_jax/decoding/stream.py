"""`stream`: the tokens of `generate` in chunks, from the same compiled loop."""

from collections.abc import Iterator, Sequence
from typing import Any

from jax.typing import DTypeLike

from obscura_jax.decoding.engine import Generator
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.request import DEFAULT_OPTIONS, GenerationOptions
from obscura_jax.nn.model import GPTModel


def stream(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    dtype: DTypeLike | None = None,
    programs: GenerationPrograms = DEFAULT_PROGRAMS,
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
        dtype: type to compute in, float32 or bfloat16; by default the type of `params`.
        programs: the programs to run: by default for one device.
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
    engine = Generator(model, params, dtype=dtype, weights="as-given", programs=programs)
    return engine.stream(
        prompts, max_new_tokens, tokens_per_chunk=tokens_per_chunk, **vars(options)
    )
