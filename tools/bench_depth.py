"""How long a training step compiles, by its number of blocks: one after the other, or in a loop.

    python tools/bench_depth.py

GPT-2's width, 4 windows of 256 tokens, for the device that is here; nothing is run. The depths take
turns, and a ratio is the median over the rounds of each depth against the first.
"""

import argparse
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

from obscura_jax.config import PRESETS
from obscura_jax.nn.depth import stacked
from obscura_jax.nn.model import GPTModel
from obscura_jax.training.initial import gpt2_parameters
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.step import first_state, train_step

BLOCKS = (12, 24, 48)
CONFIG = OptimizerConfig(clip_norm=1.0, decay_vectors=False)


def seconds(blocks: int, scan: bool) -> float:
    """To trace, lower and compile a step of a model with so many blocks."""
    cfg = replace(PRESETS["gpt2"], n_layers=blocks, drop_rate=0.0)
    state = jax.eval_shape(lambda: first_state(CONFIG, gpt2_parameters(cfg, jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((1, 4, 256), jnp.int32)
    jax.clear_caches()
    begin = time.perf_counter()
    model = GPTModel(cfg)
    train_step.lower(model, CONFIG, stacked(state) if scan else state, ids, ids).compile()
    return time.perf_counter() - begin


def main() -> None:
    """Print a row a depth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds; default: 5")
    rounds = parser.parse_args().repeats
    for name, scan in (("in a loop (--scan)", True), ("one after the other", False)):
        found = [[seconds(blocks, scan) for blocks in BLOCKS] for _ in range(rounds)]
        for place, blocks in enumerate(BLOCKS):
            middle = statistics.median(row[place] for row in found)
            ratio = statistics.median(row[place] / row[0] for row in found)
            print(f"{name:<20} {blocks:>3} blocks {middle:6.1f} s {ratio:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
