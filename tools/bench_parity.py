"""Time the comparison of two programs, and measure its peak memory: python tools/bench_parity.py

The models are Llama's: rotary positions, grouped key heads, RMS norms, a gated feed-forward layer.
The PyTorch side is the class of the package transformers, the JAX side a function in this file.
Each size runs in a process of its own, equal and with a planted fault (another epsilon).
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 101,
        "hidden_size": 64,
        "intermediate_size": 172,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "124M": {
        "vocab_size": 50257,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    "0.5B": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
_LENGTH, _EPSILON = 17, 1e-5


def decoder(params: dict[str, Any], tokens: Any, *, heads: int, epsilon: float) -> Any:
    """Return the logits (batch, length, vocabulary) of tokens (batch, length)."""
    import jax.numpy as jnp

    x = params["embed"][tokens]
    width = params["layers"][0]["query"].shape[0] // heads
    angles = jnp.arange(tokens.shape[1])[:, None] * 10000.0 ** -(jnp.arange(0, width, 2) / width)
    for layer in params["layers"]:
        h = _norm(x, layer["norm1"], epsilon)
        x = x + _attention(layer, h, angles, heads, width)
        h = _norm(x, layer["norm2"], epsilon)
        gate = h @ layer["gate"].T
        x = x + (gate / (1 + jnp.exp(-gate)) * (h @ layer["up"].T)) @ layer["down"].T
    return _norm(x, params["norm"], epsilon) @ params["embed"].T


def _norm(x: Any, weight: Any, epsilon: float) -> Any:
    import jax.numpy as jnp

    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight


def _attention(layer: dict[str, Any], x: Any, angles: Any, heads: int, width: int) -> Any:
    import jax
    import jax.numpy as jnp

    batch, length, _ = x.shape
    query, key, value = (
        (x @ layer[name].T).reshape(batch, length, -1, width) for name in ("query", "key", "value")
    )
    query, key = _rotated(query, angles), _rotated(key, angles)
    groups = heads // key.shape[2]
    key, value = jnp.repeat(key, groups, axis=2), jnp.repeat(value, groups, axis=2)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / width**0.5
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    return mixed.reshape(batch, length, -1) @ layer["output"].T


def _rotated(x: Any, angles: Any) -> Any:
    import jax.numpy as jnp

    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def sides(size: str, epsilon: float) -> tuple[Any, Any]:
    """Return the two programs of a size, with random weights."""
    import jax.numpy as jnp
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from obscura_jax.parity import jax_program, torch_program

    settings: dict[str, Any] = {
        **SIZES[size],
        "rms_norm_eps": _EPSILON,
        "tie_word_embeddings": True,
        "attn_implementation": "eager",
        "use_cache": False,
    }
    config = LlamaConfig(**settings)
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    state = {name: jnp.asarray(value.numpy()) for name, value in model.state_dict().items()}
    names = {
        **{n: f"self_attn.{n[0]}_proj" for n in ("query", "key", "value", "output")},
        **{n: f"mlp.{n}_proj" for n in ("gate", "up", "down")},
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
    }
    layers = [
        {ours: state[f"model.layers.{i}.{theirs}.weight"] for ours, theirs in names.items()}
        for i in range(config.num_hidden_layers)
    ]
    params = {
        "embed": state["model.embed_tokens.weight"],
        "layers": layers,
        "norm": state["model.norm.weight"],
    }
    tokens = torch.randint(config.vocab_size, (1, _LENGTH))
    call = partial(decoder, heads=config.num_attention_heads, epsilon=epsilon)
    return (
        torch_program(model, tokens, out="logits"),
        jax_program(call, params, jnp.asarray(tokens.numpy())),
    )


def measure(size: str, epsilon: float) -> None:
    """Compare once, and print the verdict, the seconds and the peak memory."""
    import jax  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    from obscura_jax.parity import compare
    from obscura_jax.parity.report import verdict_line

    programs = sides(size, epsilon)
    start = time.perf_counter()
    report = compare(*programs)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{size:<5} {seconds:7.1f} s {peak:6.1f} GiB  {verdict_line(report)}", flush=True)


def main() -> None:
    """Measure the sizes that the command line names, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--epsilon", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.epsilon is not None:
        measure(args.sizes[0], args.epsilon)
        return
    for size in args.sizes or SIZES:
        for epsilon in (_EPSILON, 1e-6):
            command = [sys.executable, __file__, size, "--epsilon", str(epsilon)]
            subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


if __name__ == "__main__":
    main()
