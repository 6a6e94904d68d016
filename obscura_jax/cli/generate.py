"""`obscura generate`: prompts in, text out."""

import argparse
import json
import sys
from typing import Any


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("generate", help="continue prompts with a model")
    parser.add_argument("prompt", nargs="*", help="text to continue; none: one a line from stdin")
    parser.add_argument(
        "--model", required=True, help="a model folder or file, or torch-seed:N[:PRESET]"
    )
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N")
    parser.add_argument("--json", action="store_true", help="print one JSON object a prompt")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Continue each prompt greedily and print it with what follows."""
    from obscura_jax.decoding.loop import generate_text_simple
    from obscura_jax.interop.files import load_model
    from obscura_jax.text.tokenizers import gpt2_tokenizer

    tokenizer = gpt2_tokenizer()
    prompts = args.prompt or sys.stdin.read().splitlines()
    encoded = [tokenizer.encode(prompt, allowed_special="all") for prompt in prompts]
    if not encoded or not all(encoded):
        raise ValueError("the prompt is empty")
    model, params = load_model(args.model)
    for prompt, ids in zip(prompts, encoded, strict=True):
        out = generate_text_simple(
            model, params, [ids], args.max_new_tokens, model.cfg.context_length
        )
        new_ids = out[0, len(ids) :].tolist()
        text = tokenizer.decode(new_ids)
        if args.json:
            print(json.dumps({"prompt": prompt, "text": text, "tokens": new_ids}))
        else:
            print(prompt + text)
