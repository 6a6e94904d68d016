"""Compare the time of processes that run an exported model with one that runs a model folder.

    python tools/bench_export.py

Each process starts, reads the weights of GPT-2 124M and generates 64 tokens. Both keep compiled
programs in a cache that is empty at first: the first run compiles, and is reported separately. The
processes take turns: with the folder, the exported model, and the exported model with executables.
A ratio is the median over the rounds, above 1 if the exported model is faster.
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
    """Export a model, time the processes, and print the measurements and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2")
    parser.add_argument("--repeats", type=positive_int, default=5, metavar="N", help="default: 5")
    args = parser.parse_args()
    model, params = load_model(args.model)
    params = jax.device_get(params)
    with tempfile.TemporaryDirectory() as folder:
        save_model(f"{folder}/model", model.cfg, params)
        targets: dict[str, list[str]] = {"exported": [], "compiled": ["cpu"]}
        for name, target in targets.items():
            path = f"{folder}/{name}"
            export_model(path, model.cfg, params, platforms=["cpu"], compile_for=target)
        names = ("model", *targets)
        commands = {name: cold_start_command(f"{folder}/{name}") for name in names}
        ours, *others = time_cold_start(commands, args.repeats)
    print(ours, *others, sep="\n")
    for other in others:
        pairs = zip(ours.values, other.values, strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        first = ours.compile_seconds + ours.median, other.compile_seconds + other.median
        print(
            f"{other.system}: {ratio:.2f}x as fast; "
            f"{first[0] / first[1]:.2f}x as fast in the first run"
        )


if __name__ == "__main__":
    main()
