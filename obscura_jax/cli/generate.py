"""`obscura generate`: prompts in, text out."""

import argparse
import io
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from obscura_jax.arguments import (
    add_model_arguments,
    positive_int,
    refuse_for_exported,
    seed_value,
    utf8,
)
from obscura_jax.compile_cache import enable_compilation_cache
from obscura_jax.config import GENERATOR
from obscura_jax.interrupts import last_words


def add_parser(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("generate", help="continue prompts with a model")
    add = parser.add_argument
    add("prompt", type=utf8, nargs="*", help="text to continue; none: one a line from stdin")
    add("--model", default="tiny", help="folder, file, gpt2, torch-seed:N[:PRESET]; default: tiny")
    add_model_arguments(parser)
    add(
        "--max-new-tokens",
        type=positive_int,
        metavar="N",
        help="largest number of new tokens; default: what fits in the context, up to 64",
    )
    add("--temperature", type=float, default=0.0, metavar="T", help="above 0 draws; default: 0")
    add("--top-k", type=positive_int, metavar="K", help="draw from the K most probable tokens")
    add("--top-p", type=float, metavar="P", help="draw from the most probable that reach P")
    add("--min-p", type=float, metavar="P", help="draw from those at P of the most probable one")
    add("--seed", type=seed_value, default=0, metavar="S", help="of what is drawn; default: 0")
    add(
        "--stop",
        type=utf8,
        action="append",
        default=[],
        metavar="TEXT",
        help="end before TEXT; repeatable",
    )
    add("--ids", action="store_true", help="read and write token ids, such as '1 2 3'")
    add("--sliding", action="store_true", help="go on beyond the context, re-reading its end")
    add("--dtype", choices=("float32", "bfloat16"), help="compute in it; default: the model's")
    add("--mesh", metavar="SIZES", help="split over all devices, such as data=4,model=2")
    add("--json", action="store_true", help="print one JSON object a prompt")
    add("--no-compile-cache", action="store_true", help="keep no compiled programs for next time")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Continue each prompt: as a stream on a terminal, else all of them in one batch."""
    prompts = _prompts(args.prompt)
    if not args.no_compile_cache:
        enable_compilation_cache()
    import jax

    from obscura_jax.decoding.generate import generate
    from obscura_jax.decoding.request import cast_params
    from obscura_jax.decoding.stream import stream_text
    from obscura_jax.export.artifact import load_artifact
    from obscura_jax.interop.checkpoint import read_checkpoint
    from obscura_jax.interop.locate import is_exported
    from obscura_jax.interop.model_tokenizer import IdTokenizer, tokenizer_of
    from obscura_jax.interop.tokens import tokens_at
    from obscura_jax.nn.model import GPTModel

    settings: dict[str, Any] = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p,
        "key": jax.random.key(args.seed, impl=GENERATOR),  # whatever JAX's default is
        "sliding": args.sliding,
    }
    if is_exported(args.model):
        refuse_for_exported(args, args.model, ("n_heads", "entry", "dtype", "mesh", "sliding"))
        model, params, settings["programs"] = load_artifact(args.model)
        tokens = tokens_at(Path(args.model))
    else:
        with nullcontext() if args.mesh is None else _on_the_host():
            checkpoint = read_checkpoint(args.model, n_heads=args.n_heads, entry=args.entry)
            model, tokens = GPTModel(checkpoint.cfg), checkpoint.tokens
            params = cast_params(args.dtype, checkpoint.params)
            del checkpoint  # it has the tensors as the file has them
    if args.ids and args.stop:
        raise ValueError("--stop is text, and with --ids there is none: leave one of them out")
    tokenizer = IdTokenizer() if args.ids else tokenizer_of(tokens, model.cfg, args.model)
    if args.mesh is not None:
        from obscura_jax.scale import generation, mesh

        over = mesh.make_mesh(mesh.parse_mesh(args.mesh))
        mesh.check_model(model.cfg, over)
        mesh.check_batch(len(prompts), over)
        params, settings["programs"] = mesh.place(over, params), generation.mesh_programs(over)
    terminal = sys.stdout is not None and sys.stdout.isatty()
    if terminal and not args.json and args.mesh is None:  # a mesh may need more rows than one
        _stream(args, tokenizer, prompts, partial(stream_text, model, params, **settings))
    else:
        _batch(args, tokenizer, prompts, partial(generate, model, params, **settings))


def _on_the_host() -> AbstractContextManager[Any]:
    """Within, arrays are made in the host's memory: a model may be too large for one device."""
    import jax

    from obscura_jax.training.placement import host_device

    return jax.default_device(host_device())


def _stream(
    args: argparse.Namespace, tokenizer: Any, prompts: list[str], stream: Callable[..., Any]
) -> None:
    """Show each prompt with its text as it is generated."""
    # Every prompt is checked before the first is shown.
    started = [stream(prompts=[prompt], tokenizer=tokenizer, stop=args.stop) for prompt in prompts]
    _notify(tokenizer)
    for prompt, pieces in zip(prompts, started, strict=True):
        with last_words("\n"):  # after Ctrl-C
            print(prompt, end="", flush=True)
            for (piece,) in pieces:
                print(piece, end="", flush=True)
        print(flush=True)


def _batch(
    args: argparse.Namespace, tokenizer: Any, prompts: list[str], generate: Callable[..., Any]
) -> None:
    """Continue all prompts in one batch, and print a text or a JSON object for each."""
    from obscura_jax.decoding.stream import decode_until_stop

    decode_until_stop(tokenizer, [], args.stop)  # refuses them before the work, not after it
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    out = generate(prompts=encoded)
    _notify(tokenizer)
    for row, prompt in enumerate(prompts):
        text, count, stopped = decode_until_stop(tokenizer, out.tokens[row], args.stop)
        made = {
            "prompt": prompt,
            "text": text,
            "tokens": out.tokens[row][:count],
            "logprobs": out.logprobs[row][:count],
            "finish": "stop" if stopped else out.finish[row],
            "seconds": round(out.stats.prefill_seconds + out.stats.decode_seconds, 6),
            "compiled": out.stats.compiled,
        }
        print(json.dumps(made) if args.json else prompt + text)


def _notify(tokenizer: Any) -> None:
    """Say on standard error which tokenizer is used, where that is a guess."""
    if notice := getattr(tokenizer, "notice", ""):
        print(f"obscura generate: {notice}", file=sys.stderr, flush=True)


def _prompts(words: list[str]) -> list[str]:
    """Return the prompts given as words of the command, or else the lines of standard input."""
    prompts = words or _lines_of_stdin()
    if not prompts:
        raise ValueError("no prompt; give one as an argument, or one per line on standard input")
    if "" in prompts:
        where = "" if words else f"line {prompts.index('') + 1} of standard input is blank; "
        raise ValueError(f"{where}a prompt needs at least one character")
    return prompts


def _lines_of_stdin() -> list[str]:
    """Return the lines of standard input, without line ends and a byte order mark."""
    if sys.stdin is None:  # the shell closed it
        return []
    if isinstance(sys.stdin, io.TextIOWrapper):  # not sys.stdin itself: its encoding is a guess
        try:
            text = sys.stdin.buffer.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"standard input is not UTF-8 text: byte {error.start} is "
                f"{error.object[error.start]:#04x}"
            ) from None
    else:
        text = sys.stdin.read().removeprefix("\ufeff")
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
