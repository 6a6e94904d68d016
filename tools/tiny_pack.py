"""A model at half the size: float16 numbers, which `load_model` reads as float32.

python tools/tiny_pack.py MODEL FOLDER
"""

import sys

import jax
import numpy as np

from obscura_jax.interop.files import load_model, save_model


def main(source: str, destination: str) -> None:
    """Read a model, round it to float16, and write it."""
    model, params = load_model(source)
    save_model(
        destination, model.cfg, jax.tree.map(lambda leaf: np.asarray(leaf, np.float16), params)
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
