"""The arguments that `obscura bench` and tools/bench_generate.py share."""

import argparse

from obscura_jax.arguments import MODEL_HELP, add_option, positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `obscura bench` and tools/bench_generate.py."""
    add_option(parser, "--model", f"model to time: {MODEL_HELP}", default="torch-seed:0:gpt2")
    heads = "number of attention heads, if the model's files do not give it"
    add_option(parser, "--n-heads", heads, "H", positive_int)
    dtypes = ("float32", "bfloat16")
    add_option(parser, "--dtype", "compute dtype; default: both, in turn", choices=dtypes)
    add_option(parser, "--repeats", "rounds per measurement", "N", positive_int, default=5)
    add_option(parser, "--no-cold", "do not time the start of a process", action="store_true")
    add_option(parser, "--json", "print one JSON object instead of text", action="store_true")
