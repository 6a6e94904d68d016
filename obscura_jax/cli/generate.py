"""`obscura generate`: continue prompts with a model."""

import argparse
import json
import sys
from typing import Any

from obscura_jax.arguments import (
    MODEL_HELP,
    add_model_arguments,
    add_option,
    positive_int,
    refuse_for_exported,
    seed_value,
    utf8,
)
from obscura_jax.cli.control_options import CONTROLS, add_control_arguments, controls_of
from obscura_jax.compile_cache import enable_compilation_cache
from obscura_jax.config import GENERATOR
from obscura_jax.interrupts import last_words
from obscura_jax.text.prompts import read_prompts


def add_parser(commands: Any) -> None:
    """Declare the arguments of the command."""
    parser = commands.add_parser("generate", help="continue prompts with a model")

    group = parser.add_argument_group("input")
    add = group.add_argument
    add("prompt", type=utf8, nargs="*", help="text to continue; by default one per line of stdin")
    add_option(group, "--model", f"model: {MODEL_HELP}; also an exported model", default="tiny")
    add_model_arguments(group)
    add("--ids", action="store_true", help="read and write token ids, such as '1 2 3'")

    group = parser.add_argument_group("sampling")
    add = group.add_argument
    add("--temperature", type=float, default=0.0, metavar="T", help="sample if above 0; default: 0")
    add("--top-k", type=positive_int, metavar="K", help="keep the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="keep the best tokens of total probability P")
    add("--min-p", type=float, metavar="P", help="keep tokens P times as probable as the best one")
    add_option(group, "--seed", "random seed for sampling", "S", seed_value, default=0)
    add_option(group, "--samples", "continuations of each prompt", "N", positive_int, default=1)

    add_control_arguments(parser.add_argument_group("controls"))

    add = parser.add_argument_group("output").add_argument
    most = "maximum number of new tokens; default: what fits in the context, up to 64"
    add("--max-new-tokens", type=positive_int, metavar="N", help=most)
    stop = {"type": utf8, "action": "append", "default": [], "metavar": "TEXT"}
    add("--stop", **stop, help="end the output before TEXT; repeatable")
    add("--sliding", action="store_true", help="continue beyond the context on its last tokens")
    add("--json", action="store_true", help="print one JSON object per prompt")
    most = "add the N most probable tokens at each position to the JSON, at most 20"
    add("--top-logprobs", type=positive_int, metavar="N", help=most)

    add = parser.add_argument_group("devices").add_argument
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default: the model's")
    weights = "form of the weights: int8 rounds them; default: auto for several rows, else as-given"
    add("--weights", choices=("as-given", "auto", "transposed", "int8"), help=weights)
    add(
        "--batch-invariant", action="store_true", help="same bits for a prompt in any batch; slower"
    )
    add("--mesh", metavar="SIZES", help="shard over all devices, such as data=4,model=2")
    add("--no-compile-cache", action="store_true", help="do not store compiled programs on disk")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Continue each prompt: as a stream on a terminal, else all of them in one batch."""
    prompts = read_prompts(args.prompt, sys.stdin)
    if not args.no_compile_cache:
        enable_compilation_cache()
    import jax

    from obscura_jax.decoding.engine import Generator
    from obscura_jax.decoding.request import GenerationOptions
    from obscura_jax.decoding.sampling import Sampling
    from obscura_jax.decoding.text import generate_text, text_pieces
    from obscura_jax.export.open_model import open_model
    from obscura_jax.interop.locate import is_exported
    from obscura_jax.interop.model_tokenizer import IdTokenizer, tokenizer_of

    if is_exported(args.model):
        unknown = ("n_heads", "entry", "dtype", "mesh", "sliding", "weights", "batch_invariant")
        refuse_for_exported(args, args.model, (*unknown, "top_logprobs", *CONTROLS))
    if args.mesh is not None and (args.weights or args.batch_invariant):
        raise ValueError("--mesh stores and runs weights its own way; leave out the other option")
    if args.ids and args.stop:
        raise ValueError("--stop takes text, but --ids has none; leave one of them out")
    if args.top_logprobs and not args.json:
        raise ValueError("--top-logprobs adds to the JSON; give --json too")
    where = {"n_heads": args.n_heads, "entry": args.entry, "dtype": args.dtype, "mesh": args.mesh}
    opened = open_model(args.model, **where)
    cfg = opened.model.cfg
    tokenizer = IdTokenizer() if args.ids else tokenizer_of(opened.tokens, cfg, args.model)
    options = GenerationOptions(
        Sampling(args.temperature, args.top_k, args.top_p, args.min_p),
        key=jax.random.key(args.seed, impl=GENERATOR),  # whatever JAX's default is
        sliding_window=args.sliding,
        samples=args.samples,
        controls=controls_of(args, tokenizer),
        top_logprobs=args.top_logprobs,
    )
    engine = Generator(
        opened.model,
        opened.params,
        weights=args.weights or ("auto" if len(prompts) * args.samples > 1 else "as-given"),
        batch_invariant=args.batch_invariant,
        programs=opened.programs,
    )
    how: Any = (tokenizer, args.max_new_tokens, options)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    one_row = args.mesh is None and args.samples == 1  # a mesh may need several
    if terminal and not args.json and one_row:
        # Every prompt is checked before the first is shown.
        streams = [text_pieces(engine, [prompt], *how, stop=args.stop) for prompt in prompts]
        _print_notice(tokenizer)
        for prompt, pieces in zip(prompts, streams, strict=True):
            _print_stream(prompt, pieces)
    else:
        outputs = generate_text(engine, prompts, *how, stop=args.stop)
        _print_notice(tokenizer)
        for output in outputs:
            as_json = args.json and json.dumps(_as_json(output, tokenizer))
            print(as_json or output.prompt + output.text)


def _print_stream(prompt: str, pieces: Any) -> None:
    with last_words("\n"):  # after Ctrl-C
        print(prompt, end="", flush=True)
        for (piece,) in pieces:
            print(piece, end="", flush=True)
    print(flush=True)


def _as_json(output: Any, tokenizer: Any) -> dict[str, Any]:
    """Return the object that --json prints."""
    printed = {
        "prompt": output.prompt,
        "text": output.text,
        "tokens": output.tokens,
        "logprobs": output.logprobs,
        "finish": output.finish_reason,
        "seconds": round(output.stats.prefill_seconds + output.stats.decode_seconds, 6),
        "compiled": output.stats.n_compilations,
    }
    if output.top_logprobs is not None:
        printed["top_logprobs"] = [
            [{"token": n, "text": tokenizer.decode([n]), "logprob": x} for n, x in position]
            for position in output.top_logprobs
        ]
    return printed


def _print_notice(tokenizer: Any) -> None:
    """Print a line on standard error if the tokenizer is a guess."""
    if notice := getattr(tokenizer, "notice", ""):
        print(f"obscura generate: {notice}", file=sys.stderr, flush=True)
