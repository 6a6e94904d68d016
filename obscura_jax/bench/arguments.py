"""The arguments that `obscura bench` and tools/bench_generate.py share."""

import argparse

from obscura_jax.arguments import MODEL_HELP, positive_int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `obscura bench` and tools/bench_generate.py."""
    add = parser.add_argument
    add(
        "--model",
        default="torch-seed:0:gpt2",
        help=f"model to time: {MODEL_HELP}; default: torch-seed:0:gpt2 (124M)",
    )
    add(
        "--n-heads",
        type=positive_int,
        metavar="H",
        help="number of attention heads, if the model's files do not give it",
    )
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default: both, in turn")
    add(
        "--repeats",
        type=positive_int,
        default=5,
        metavar="N",
        help="rounds per measurement; default: 5",
    )
    add("--no-cold", action="store_true", help="do not time the start of a process")
    add("--json", action="store_true", help="print one JSON object instead of text")
