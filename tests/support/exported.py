"""The small model that the tests of exported models export."""

from typing import Any

import jax

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.training.initial import gpt2_init

CFG = GPTConfig(
    vocab_size=307,
    context_length=29,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
)


def decided_model() -> tuple[GPTModel, Any]:
    """Return a model and parameters whose best tokens are far from ties."""
    params = gpt2_init(CFG, jax.random.key(0))
    return GPTModel(CFG), jax.tree.map(lambda leaf: leaf * 10, params)
