"""A small model of the course's shape with every parameter random, and ways to compare models."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from obscura_jax.config import GPTConfig
from obscura_jax.parity import torch_reference

CFG = GPTConfig(
    vocab_size=17,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=False,
)
BIASED = replace(CFG, qkv_bias=True)
LOGITS = 4 * 4.8e-7  # measured: at most 4.8e-7 over 40 seeds, for logits of about 1


def course_model(cfg=BIASED, seed=0):
    """The course's model with every parameter drawn anew: fresh norms and biases hide swaps."""
    torch.manual_seed(seed)
    model = torch_reference.GPTModel(cfg.to_dict()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def bits(state):
    return {name: np.asarray(x).tobytes() for name, x in sorted(state.items())}


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in flat}


IDS = np.random.default_rng(0).integers(0, 17, (3, 11))


def logits_of(model, params):
    return np.asarray(model.apply({"params": params}, jnp.asarray(IDS, jnp.int32)))


def difference(model, params, reference):
    with torch.no_grad():
        return np.abs(logits_of(model, params) - reference(torch.tensor(IDS)).numpy()).max()
