"""Small models of every dialect with all parameters random, and ways to compare them.

All have one shape. Its sizes are unequal, and fresh norms and biases show parameters that were
exchanged.
"""

import functools
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import torch

from obscura_jax.config import GPTConfig
from obscura_jax.interop.build import build
from obscura_jax.interop.checkpoint import load_model
from obscura_jax.parity.gpt import torch_reference
from tests.support.nanogpt import GPT

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
TIED = replace(BIASED, tie_weights=True)
NANOGPT_ARGS = {
    "n_layer": CFG.n_layers,
    "n_head": CFG.n_heads,
    "n_embd": CFG.emb_dim,
    "block_size": CFG.context_length,
    "vocab_size": CFG.vocab_size,
    "bias": True,
}
IDS = np.random.default_rng(0).integers(0, CFG.vocab_size, (3, CFG.context_length))
LOGITS = 4 * 4.8e-7  # measured: at most 4.8e-7 over 40 seeds, for logits of about 1


def randomize(model, seed):
    """Draw every parameter of a PyTorch model, and set the model to evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def course_model(cfg=BIASED, seed=0):
    """Return the course's model."""
    return randomize(torch_reference.GPTModel(cfg.to_dict()), seed)


def nanogpt_model(bias=True, seed=0):
    """Return nanoGPT's model."""
    return randomize(GPT({**NANOGPT_ARGS, "bias": bias}), seed)


def hf_model(cfg=TIED, seed=0, **changes):
    """Return transformers' model, whose config has these changes."""
    config = transformers().GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.emb_dim,
        n_head=cfg.n_heads,
        n_layer=cfg.n_layers,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=cfg.tie_weights,
        **changes,
    )
    return randomize(transformers().GPT2LMHeadModel(config), seed)


@functools.cache
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised on import
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    return transformers


def params_of(state, cfg):
    """Return the parameters in a course state dict of tensors or arrays."""
    return build({name: np.asarray(x) for name, x in state.items()}, cfg.to_dict()).params


def model_of(cfg, seed=0):
    """Return the parameters of `course_model`, for a tied config too."""
    state = course_model(replace(cfg, tie_weights=False), seed).state_dict()
    if cfg.tie_weights:
        del state["out_head.weight"]
    return params_of(state, cfg)


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in flat}


def bits(state):
    return {name: np.asarray(x).tobytes() for name, x in sorted(state.items())}


def same_bits(a, b):
    return bits(leaves(a)) == bits(leaves(b))


def logits_of(model, params):
    return np.asarray(model.apply({"params": params}, jnp.asarray(IDS, jnp.int32)))


def torch_logits(module):
    """Return the logits of a PyTorch model of any dialect for `IDS`."""
    with torch.no_grad():
        out = module(torch.tensor(IDS))
    return getattr(out, "logits", out).numpy()


def difference(model, params, module):
    """Return the largest difference of the logits from those of a PyTorch model."""
    return np.abs(logits_of(model, params) - torch_logits(module)).max()


def distance(source, module, **kwargs):
    """Return `difference` for the model at `source`."""
    return difference(*load_model(source, **kwargs), module)
