"""Write a model at half its size, in float16; `load_model` widens it to float32.

python tools/tiny_pack.py MODEL FOLDER
"""

import sys

import jax
import numpy as np

from obscura_jax.interop.checkpoint import read_checkpoint, save_model


def main(source: str, destination: str) -> None:
    """Read a model, round it to float16, and write it."""
    model = read_checkpoint(source)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), model.params)
    save_model(destination, model.cfg, params, tokens=model.tokens)


if __name__ == "__main__":
    main(*sys.argv[1:])
