"""The options of `obscura generate` that change logits before sampling."""

import argparse
from typing import Any

from obscura_jax.arguments import positive_int, utf8
from obscura_jax.text.any_tokenizer import single_token

# Attributes of the parsed arguments.
CONTROLS = (
    "bias",
    "ban",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "min_new_tokens",
)


def add_control_arguments(group: argparse._ActionsContainer) -> None:
    """Declare the options."""
    add = group.add_argument
    bias = "add VALUE to the logit of TOKEN (text of one token, or an id with --ids); repeatable"
    repeated: dict[str, Any] = {"action": "append", "default": []}
    add("--bias", **repeated, type=_token_and_value, metavar="TOKEN=VALUE", help=bias)
    add("--ban", **repeated, type=utf8, metavar="TOKEN", help="never sample TOKEN; repeatable")
    repetition = "divide positive logits of tokens in the prompt or the new text by R"
    add("--repetition-penalty", type=float, metavar="R", help=repetition)
    frequency = "subtract F from a logit once for each time that its token is among the new tokens"
    add("--frequency-penalty", type=float, metavar="F", help=frequency)
    presence = "subtract P from a logit once if its token is among the new tokens"
    add("--presence-penalty", type=float, metavar="P", help=presence)
    least = "ignore --stop in the first N new tokens"
    add("--min-new-tokens", type=positive_int, metavar="N", help=least)


def controls_of(args: argparse.Namespace, tokenizer: Any) -> Any:
    """Return the `Controls` that the arguments describe, for ids of `tokenizer`.

    Raises:
        ValueError: if the text of a biased or banned token is not one token.
    """
    from obscura_jax.decoding.controls import Controls

    return Controls(
        {single_token(tokenizer, token): value for token, value in args.bias},
        [single_token(tokenizer, token) for token in args.ban],
        args.repetition_penalty,
        args.frequency_penalty,
        args.presence_penalty,
        args.min_new_tokens,
    )


def _token_and_value(word: str) -> tuple[str, float]:
    """Parse TOKEN=VALUE; the token may contain "=" itself."""
    token, equals, value = utf8(word).rpartition("=")
    try:
        return token, float(value if equals else "")
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be TOKEN=VALUE, such as ' the=-2', got {word!r}"
        ) from None
