"""Let a PyTorch model drop the values that our model drops, and sample with our noise.

Keys are those of `obscura_jax.rng.threefry`, (2,) uint32, as `jax.random.key_data` returns them.
This module does not run JAX and does not use PyTorch's random number generators.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import config
from numpy.typing import ArrayLike

from obscura_jax.rng import threefry
from obscura_jax.rng.threefry import Key

if TYPE_CHECKING:
    from torch import Tensor, nn


def linen_key(key: Key, path: Sequence[str], count: int) -> Key:
    """Return the key of the `count`-th `make_rng("dropout")` of the module at `path`.

    Counts start at 1. `key` is the key passed to `apply`; Linen folds the first 32 bits of a SHA-1
    hash of path and count into it.
    """
    separator = b"\0" if config.flax_fix_rng_separator else b""
    number = count.to_bytes((count.bit_length() + 7) // 8, "big")
    parts = [*(name.encode() for name in path), number]
    digest = hashlib.sha1(b"".join(separator + part for part in parts)).digest()
    return threefry.fold_in(key, int.from_bytes(digest[:4], "big"))


def dropout_key(key: Key, path: Sequence[str], count: int, blocks: int) -> Key:
    """Return the key of the `count`-th dropout at `path` under `rngs={"dropout": key}`.

    Counts start at 1. A model with `blocks` blocks, or a block alone, draws a single key and folds
    two numbers into it: the block's, and that of the dropout in the block. Other modules get their
    keys from Linen.
    """
    if not path or path[0] not in ("trf_blocks", "drop_emb", "att", "drop_shortcut"):
        return linen_key(key, path, count)
    key = linen_key(key, (), 1)
    if path[0] == "drop_emb":
        return threefry.fold_in(key, blocks)
    if path[0] == "trf_blocks":
        key, path = threefry.fold_in(key, int(path[1])), path[2:]
    return threefry.fold_in(key, 0 if path[0] == "att" else count)


@contextmanager
def same_dropout(module: "nn.Module", key: Key) -> Iterator[None]:
    """Context manager: `module` drops the values that ours drops under `rngs={"dropout": key}`.

    It must be in training mode. Each call starts from `key` again, as each `apply` does. The names
    of its `torch.nn.Dropout` modules, which must be the course's, determine the draws.

    Args:
        module: a model with the course's modules, or a part of one to compare with that part alone.
        key: the key passed to `apply`.
    """
    import torch

    counts: Counter[tuple[str, ...]] = Counter()

    def drop(path: tuple[str, ...], dropout: "nn.Dropout", args: Any, out: "Tensor") -> "Tensor":
        if not dropout.training or dropout.p == 0:
            return out
        (x,) = args
        counts[path] += 1
        own = dropout_key(key, path, counts[path], blocks)
        keep = threefry.bernoulli(own, 1 - dropout.p, tuple(x.shape))
        kept = torch.from_numpy(keep).to(x.device)
        return torch.where(kept, x / (1 - dropout.p), torch.zeros_like(x))

    blocks = sum(1 for name, _ in module.named_modules() if name.rpartition(".")[0] == "trf_blocks")
    with ExitStack() as hooks:
        hooks.enter_context(module.register_forward_pre_hook(lambda *_: counts.clear()))
        for name, part in module.named_modules():
            if isinstance(part, torch.nn.Dropout):
                *parent, own_name = name.split(".")
                # Our attention has no module for its dropout and uses its own key.
                path = parent if own_name == "dropout" else [*parent, own_name]
                hook: Any = partial(drop, tuple(path))
                hooks.enter_context(part.register_forward_hook(hook))
        yield


def sample_tokens(
    module: "nn.Module",
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    key: ArrayLike,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Return the tokens that `generate(..., temperature=temperature, key=key)` samples.

    Args:
        module: maps ids (1, T) to logits (1, T, V); in evaluation mode, since `generate` drops no
            values.
        prompts: token ids of each row; lengths may differ.
        max_new_tokens: number of tokens per row; each row must fit into the module's context.
        key: one key for all rows, (2,), or one per row, (B, 2).
        temperature: a number above 0.

    Returns:
        the new tokens of each row.

    Raises:
        ValueError: if `temperature` is not above 0.
    """
    import torch

    if not temperature > 0:
        raise ValueError(f"sampling needs a temperature above 0, got {temperature}")
    rows = []
    for prompt, own in zip(prompts, np.broadcast_to(key, (len(prompts), 2)), strict=True):
        ids = list(prompt)
        for _ in range(max_new_tokens):
            with torch.no_grad():
                logits = module(torch.tensor([ids]))[0, -1].numpy()
            shifted = (logits - logits.max()) / np.float32(temperature)
            # `generate` draws noise in lines of 128; the first V numbers do not depend on that.
            noise = threefry.gumbel(threefry.fold_in(own, len(ids)), shifted.shape)
            ids.append(int((shifted + noise).argmax()))
        rows.append(ids[len(prompt) :])
    return rows
