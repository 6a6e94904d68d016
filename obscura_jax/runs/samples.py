"""Text that the model generates during training, shown with each validation loss."""

from collections.abc import Callable
from typing import Any

import jax

from obscura_jax.decoding.generate import generate
from obscura_jax.decoding.text import decode_until_stop
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.tokenizers import LEAST_TOKENS, tokenizer_for

_TOKENS = 32


def text_sampler(
    model: GPTModel, key: jax.Array, warn: Callable[[str], object]
) -> Callable[[Any], str] | None:
    """Return a function that maps parameters to a text of at most 32 tokens, drawn with `key`.

    Return None for a model without a text tokenizer, or whose context has room for one token only.
    An error in the function is reported through `warn` and gives an empty text, so that it does
    not end the run.
    """
    cfg = model.cfg
    count = min(_TOKENS, cfg.context_length - 1)
    if cfg.vocab_size < LEAST_TOKENS or count == 0:
        return None
    tokenizer = tokenizer_for(cfg.vocab_size)
    prompts = [[tokenizer.eot_token]]

    def sample(params: Any) -> str:
        try:
            out = generate(model, params, prompts, count, temperature=0.8, key=key)
            return decode_until_stop(tokenizer, out.tokens[0])[0]
        except Exception as error:
            warn(f"no sample of text: {error}")
            return ""

    return sample
