"""The parameters that a training begins with."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from obscura_jax.config import GPTConfig
from obscura_jax.nn.model import GPTModel


def gpt2_parameters(cfg: GPTConfig, key: jax.Array) -> dict[str, Any]:
    """Fresh parameters of `GPTModel(cfg)` as GPT-2 draws them (Radford et al. 2019, section 2.3).

    Matrices are N(0, 0.02^2), those that end a branch of the residual stream divided by the root of
    their number, 2 n_layers; norms are ones and zeros, biases zeros. Torch's own, of which `init`
    has the distribution, begin a tied model at a loss of about 36; these at about ln V = 10.8.
    """
    variables = jax.eval_shape(lambda: GPTModel(cfg).init(jax.random.key(0), [[0]]))
    shapes = flatten_dict(variables["params"])
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
