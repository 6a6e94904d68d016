"""One small model for the tests of generation: its programs are compiled once per process."""

from collections.abc import Iterable
from dataclasses import fields

import jax
import numpy as np

from obscura_jax import Controls, GenerationOptions, GPTConfig, GPTModel, Sampling
from obscura_jax.rng.torch_generator import torch_seed_init

CFG = GPTConfig(
    vocab_size=61,
    context_length=67,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
)
MODEL = GPTModel(CFG)
# The attention of fresh weights is almost uniform: the next token depends on the last token alone,
# and a wrong cache would go unnoticed. Six times larger weights attend to earlier tokens.
PARAMS = torch_seed_init(CFG, 123)
PARAMS["trf_blocks"] = jax.tree.map(lambda leaf: 6 * leaf, PARAMS["trf_blocks"])
KEY = jax.random.key(5)
SAMPLED = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "key": KEY}
_SAMPLING = {field.name for field in fields(Sampling)}
_CONTROLS = {field.name for field in fields(Controls)}


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CFG.vocab_size, n).tolist() for n in lengths]


# Most tests continue these rows by NEW tokens, or fewer: that takes two compiled programs.
ROWS = prompts(5, 1, 40, 9)
NEW = 20


def options(**keywords) -> GenerationOptions:
    """The keyword arguments of `generate` as `stream` takes them."""
    sampling = {name: keywords.pop(name) for name in _SAMPLING & keywords.keys()}
    controls = {name: keywords.pop(name) for name in _CONTROLS & keywords.keys()}
    return GenerationOptions(Sampling(**sampling), controls=Controls(**controls), **keywords)


def joined(chunks: Iterable[list[list[int]]]) -> list[list[int]]:
    """Return the rows of all chunks of a stream put together."""
    return [[token for ids in row for token in ids] for row in zip(*chunks, strict=True)]
