"""`obscura generate`: prompts in, text out."""

import argparse
import json
import sys
from typing import Any

from obscura_jax.cli.arguments import size


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("generate", help="continue prompts with a model")
    parser.add_argument("prompt", nargs="*", help="text to continue; none: one a line from stdin")
    parser.add_argument(
        "--model", required=True, help="a model folder or file, or torch-seed:N[:PRESET]"
    )
    parser.add_argument("--n-heads", type=size, metavar="H", help="if the model does not say")
    parser.add_argument("--max-new-tokens", type=size, default=64, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Continue each prompt greedily and print it with what follows."""
    from obscura_jax.config import GPTConfig
    from obscura_jax.decoding.loop import generate_text_simple
    from obscura_jax.interop.files import load_model
    from obscura_jax.text.tokenizers import gpt2_tokenizer

    prompts = _prompts(args.prompt)
    tokenizer = gpt2_tokenizer()
    encoded = [tokenizer.encode(prompt, allowed_special="all") for prompt in prompts]
    model, params = load_model(args.model, n_heads=args.n_heads)
    context_size = GPTConfig.of(model.cfg).context_length
    for prompt, ids in zip(prompts, encoded, strict=True):
        out = generate_text_simple(model, params, [ids], args.max_new_tokens, context_size)
        new_ids = out[0, len(ids) :].tolist()
        if max(new_ids) >= tokenizer.n_vocab:
            raise ValueError(f"the model made token id {max(new_ids)}, the tokenizer has no such")
        text = tokenizer.decode(new_ids)
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new_ids}))
        else:
            print(prompt + text)


def _prompts(words: list[str]) -> list[str]:
    """The prompts given as words of the command, or else as the lines of standard input."""
    try:
        lines = [] if words or sys.stdin is None else [line.rstrip("\n") for line in sys.stdin]
        prompts = words or lines
        for prompt in prompts:
            prompt.encode()
    except UnicodeError as error:
        raise ValueError("the prompt is not UTF-8 text") from error
    if not prompts:
        raise ValueError("the prompt is empty: give one as an argument, or one a line on stdin")
    if "" in prompts:
        where = "" if words else f": line {lines.index('') + 1} of stdin is blank"
        raise ValueError(f"the prompt is empty{where}")
    return prompts
