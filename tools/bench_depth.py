"""Time to compile and to run a training step, with the blocks in a loop (--scan) or unrolled.

    python tools/bench_depth.py

The models have GPT-2's width and read 4 windows of 256 tokens on JAX's default device. In each
round every depth compiles once; a ratio is the median over the rounds of a depth's time divided by
that of the smallest depth. Then GPT-2 124M takes steps both ways, in turn, and every second step is
timed.
"""

import argparse
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

from obscura_jax.arguments import positive_int
from obscura_jax.bench.training import time_training, training_step
from obscura_jax.config import PRESETS
from obscura_jax.nn.model import GPTModel
from obscura_jax.nn.scan import stack_blocks
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.options import StepOptions
from obscura_jax.training.step import init_train_state, train_step_jit

BLOCKS = (12, 24, 48)
WAYS = {"in a loop": True, "unrolled": False}
CFG = replace(PRESETS["gpt2"], drop_rate=0.0)
CONFIG = OptimizerConfig(clip_norm=1.0, decay_1d_params=False)
ROWS, LENGTH = 4, 256


def compiling(blocks: int, scan: bool) -> float:
    """Return the seconds to trace, lower and compile a step of a model with `blocks` blocks."""
    cfg = replace(CFG, n_layers=blocks)
    state = jax.eval_shape(lambda: init_train_state(CONFIG, gpt2_init(cfg, jax.random.key(0))))
    ids = jax.ShapeDtypeStruct((1, ROWS, LENGTH), jnp.int32)
    jax.clear_caches()
    begin = time.perf_counter()
    train_step_jit.lower(
        GPTModel(cfg), CONFIG, stack_blocks(state) if scan else state, ids, ids
    ).compile()
    return time.perf_counter() - begin


def main() -> None:
    """Print one row per form of the model and depth, then one for the steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=positive_int, default=3, help="rounds; default: 3")
    rounds = parser.parse_args().repeats
    compiling(BLOCKS[0], scan=True)  # work that is done once per process
    for way, scan in WAYS.items():
        found = [[compiling(blocks, scan) for blocks in BLOCKS] for _ in range(rounds)]
        for place, blocks in enumerate(BLOCKS):
            middle = statistics.median(row[place] for row in found)
            ratio = statistics.median(row[place] / row[0] for row in found)
            print(f"{way:<20} {blocks:>3} blocks {middle:6.1f} s {ratio:6.2f}x", flush=True)
    steps = {
        way: training_step(CFG, ROWS, LENGTH, StepOptions(), scan=s) for way, s in WAYS.items()
    }
    loop, unrolled = time_training("steps", steps, ROWS * LENGTH, rounds)
    ratio = statistics.median(b / a for a, b in zip(loop.values, unrolled.values, strict=True))
    print(f"a step in a loop takes {ratio:.2f}x as long as an unrolled step")


if __name__ == "__main__":
    main()
