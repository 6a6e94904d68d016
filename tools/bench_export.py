"""A process that starts from an exported model, beside one that starts from its folder.

    python tools/bench_export.py

Each starts, reads the weights of GPT-2 124M and writes 64 tokens. Both keep their compiled programs
in a folder that is empty at first: the first run compiles, and is apart. They take turns; the ratio
is the median over the rounds, above 1 where the exported model is faster.
"""

import argparse
import statistics
import tempfile

import jax

from obscura_jax.bench.processes import cold_start_command, time_cold_start
from obscura_jax.interop.files import load_model, save_model
from obscura_jax.scale.export import export_model


def main() -> None:
    """Export, time both, print the figures and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="default: 5")
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
    print(f"exported: {ratio:.2f}x as fast; the first time {first[0] / first[1]:.2f}x")


if __name__ == "__main__":
    main()
