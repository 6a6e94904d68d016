"""The arguments that `obscura bench` and tools/bench_generate.py share."""

import argparse

from obscura_jax.arguments import size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `obscura bench` and tools/bench_generate.py."""
    add = parser.add_argument
    add("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2 (124M)")
    add("--n-heads", type=size, metavar="H", help="number of heads, if the model does not state it")
    add("--dtype", choices=("float32", "bfloat16"), help="compute dtype; default: both, in turn")
    add("--repeats", type=size, default=5, metavar="N", help="rounds per measurement; default: 5")
    add("--no-cold", action="store_true", help="do not time the start of a process")
    add("--json", action="store_true", help="print one JSON object")
