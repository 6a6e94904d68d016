"""Compare the time of a process that runs an exported model with one that runs a model folder.

    python tools/bench_export.py

Each process starts, reads the weights of GPT-2 124M and generates 64 tokens. Both keep compiled
programs in a cache that is empty at first: the first run compiles, and is reported separately. The
two take turns. The ratio is the median over the rounds, above 1 if the exported model is faster.
"""

import argparse
import statistics
import tempfile

import jax

from obscura_jax.arguments import positive_int
from obscura_jax.bench.processes import cold_start_command, time_cold_start
from obscura_jax.export.exporter import export_model
from obscura_jax.interop.checkpoint import load_model, save_model


def main() -> None:
    """Export a model, time both processes, and print the measurements and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2")
    parser.add_argument("--repeats", type=positive_int, default=5, metavar="N", help="default: 5")
    args = parser.parse_args()
    model, params = load_model(args.model)
    params = jax.device_get(params)
    with tempfile.TemporaryDirectory() as folder:
        save_model(f"{folder}/model", model.cfg, params)
        export_model(f"{folder}/exported", model.cfg, params)
        commands = {name: cold_start_command(f"{folder}/{name}") for name in ("model", "exported")}
        ours, exported = time_cold_start(commands, args.repeats)
    print(ours, exported, sep="\n")
    pairs = zip(ours.values, exported.values, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    first = ours.compile_seconds + ours.median, exported.compile_seconds + exported.median
    print(f"exported: {ratio:.2f}x as fast; {first[0] / first[1]:.2f}x as fast in the first run")


if __name__ == "__main__":
    main()
