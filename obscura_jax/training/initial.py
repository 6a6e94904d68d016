"""Initial parameters for training."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from obscura_jax.config import GPTConfig
from obscura_jax.nn.parameters import init_shapes


def gpt2_init(cfg: GPTConfig, key: jax.Array) -> dict[str, Any]:
    """Draw parameters of `GPTModel(cfg)` as GPT-2 does (Radford et al. 2019, section 2.3).

    Matrices are N(0, 0.02^2). Those that end a residual branch are divided by the square root of
    the number of branches, 2 n_layers. Norms have scale 1 and shift 0; biases are 0. The initial
    loss of a tied model is about ln V = 10.8; with torch's default distribution, which `init` uses,
    it is about 36.
    """
    shapes = flatten_dict(init_shapes(cfg))
    params = {}
    for number, (path, leaf) in enumerate(shapes.items()):
        name = ".".join(path)
        if leaf.ndim == 1:
            params[path] = (jnp.ones if path[-1] == "scale" else jnp.zeros)(leaf.shape, leaf.dtype)
            continue
        ends_branch = name.endswith(("att.out_proj.weight", "ff.layers.2.weight"))
        deviation = 0.02 / math.sqrt(2 * cfg.n_layers if ends_branch else 1)
        noise = jax.random.normal(jax.random.fold_in(key, number), leaf.shape, leaf.dtype)
        params[path] = deviation * noise
    return unflatten_dict(params)
