"""`generate`: prompts of any lengths in, new tokens out."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from obscura_jax.decoding.controls import BiasPerRow, Controls
from obscura_jax.decoding.engine import Generator
from obscura_jax.decoding.per_row import FloatPerRow, IdsPerRow, IntPerRow
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.decoding.results import GenerateOutput
from obscura_jax.decoding.sampling import Sampling
from obscura_jax.nn.model import GPTModel


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
    engine = Generator(model, params, dtype=dtype, weights="as-given", programs=programs)
    return engine.generate(
        prompts,
        max_new_tokens,
        sampling=sampling,
        key=key,
        stop_ids=stop_ids,
        sliding_window=sliding_window,
        controls=controls,
        top_logprobs=top_logprobs,
    )
