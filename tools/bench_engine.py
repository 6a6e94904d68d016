"""Milliseconds per step of decoding GPT-2 124M, by the form of its weights and the rows of a batch.

    python tools/bench_engine.py [--rows 1,8] [--rounds 7]

The weights are random. All engines are timed in turn, in one process, and a ratio is the median of
the rounds' ratios to float32 as given (above 1: faster).
"""

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import jax

from obscura_jax.config import PRESETS
from obscura_jax.decoding.engine import Generator
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.parameters import parameter_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))

from docs.hooks.data_files import add_save_option, save, saved_command, significant

_NEW = 33
_ENGINES: dict[str, dict[str, Any]] = {
    "float32, as given": {"weights": "as-given"},
    "float32, transposed": {"weights": "transposed"},
    "float32, batch-invariant": {"weights": "as-given", "batch_invariant": True},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, batch-invariant": {"dtype": "bfloat16", "batch_invariant": True},
    "8 bits, computed in float32": {"weights": "int8"},
    "8 bits, computed in bfloat16": {"weights": "int8", "dtype": "bfloat16"},
}


def main() -> None:
    """Time the engines, and print a table for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default="1,8", metavar="N,...", help="rows; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    add_save_option(parser)
    args = parser.parse_args()
    command = saved_command(parser, args.save)
    model = GPTModel(PRESETS["gpt2"])
    params = jax.jit(lambda: model.init(jax.random.key(0), [[0]]))()["params"]
    engines = {name: Generator(model, params, **how) for name, how in _ENGINES.items()}
    found = []
    for rows in map(int, args.rows.split(",")):
        prompts = [[(37 * row + 11 * i) % 256 for i in range(8)] for row in range(rows)]
        times: dict[str, list[float]] = {name: [] for name in engines}
        for turn in range(args.rounds + 1):
            for name, engine in engines.items():
                seconds = engine.generate(prompts, _NEW).stats.decode_seconds
                if turn:  # the first call compiles
                    times[name].append(1000 * seconds / (_NEW - 1))
        print(f"{rows} row{'s' * (rows > 1)}")
        first = times["float32, as given"]
        for name, own in times.items():
            ratio = statistics.median(a / b for a, b in zip(first, own, strict=True))
            size = parameter_bytes(engines[name].params) / 2**20
            median = statistics.median(own)
            print(f"  {name:<27} {median:7.1f} ms/step  {ratio:5.2f}x  {size:6.0f} MiB", flush=True)
            figures = {"mebibytes": size, "ms": median, "ratio": ratio}
            rounded = {key: significant(value) for key, value in figures.items()}
            found.append({"weights": name, "rows": rows, **rounded})
    if args.save:
        save(args.save / "engines.json", found, command=command)


if __name__ == "__main__":
    main()
