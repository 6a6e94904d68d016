"""A PyTorch model that drops the values our model drops, and samples with our noise.

Keys are those of `obscura_jax.rng.threefry`, (2,) uint32: `jax.random.key_data(key)` of a JAX
key. Nothing here runs JAX, and PyTorch's own generators decide nothing.
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
from obscura_jax.rng.threefry import Words

if TYPE_CHECKING:
    from torch import Tensor, nn


def linen_key(key: Words, path: Sequence[str], count: int) -> Words:
    """What the count-th `make_rng("dropout")`, from 1, gives the module at `path` of an `apply`.

    Linen folds the first 32 bits of a SHA-1 of the path and count into the key that `apply` got.
    """
    separator = b"\0" if config.flax_fix_rng_separator else b""
    number = count.to_bytes((count.bit_length() + 7) // 8, "big")
    parts = [*(name.encode() for name in path), number]
    digest = hashlib.sha1(b"".join(separator + part for part in parts)).digest()
    return threefry.fold_in(key, int.from_bytes(digest[:4], "big"))


def dropout_key(key: Words, path: Sequence[str], count: int, blocks: int) -> Words:
    """Return the key of the count-th dropout, from 1, at `path` under `rngs={"dropout": key}`.

    A model of `blocks` blocks, or a block alone, makes one key of that and folds numbers into it:
    that of the block, and that of the dropout within the block. Other modules leave it to Linen.
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
def same_dropout(module: "nn.Module", key: Words) -> Iterator[None]:
    """Make a training-mode `module` drop the values that ours drops under `rngs={"dropout": key}`.

    Each call of `module` starts from `key` again, as each `apply` does; draws are told apart by the
    names of the `torch.nn.Dropout` modules, which must be the course's.

    Args:
        module: a model of the course's shape, or a part of one, compared with that part alone.
        key: the key that `apply` gets.
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
                # Our attention has no module for its dropout: it draws with its own key.
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
    """The new tokens of each prompt, drawn as `generate(..., temperature=temperature, key=key)`.

    Args:
        module: ids (1, T) in, logits (1, T, V) out; in eval mode, as `generate` drops nothing.
        prompts: token ids of each row; lengths may differ.
        max_new_tokens: how many tokens each row gets. No row may outgrow the module's context.
        key: one key for all rows, (2,), or one for each, (B, 2).
        temperature: above 0, else ValueError.
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
            # ours draws noise in lines of 128: the first V numbers are the same in any shape
            noise = threefry.gumbel(threefry.fold_in(own, len(ids)), shifted.shape)
            ids.append(int((shifted + noise).argmax()))
        rows.append(ids[len(prompt) :])
    return rows
