"""PyTorch's side of the tools that compare speed: training steps, and decoding of GPT-2."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from obscura_jax.bench.generation import GenerateFn
from obscura_jax.bench.processes import peak_mebibytes
from obscura_jax.bench.training import TimedStep, token_batch
from obscura_jax.config import GPTConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


def torch_training_step(
    model: "nn.Module",
    logits_of: Callable[["Tensor"], "Tensor"],
    batch: np.ndarray,
    dtype: str,
    *,
    compiled: bool,
    device: str = "cpu",
) -> TimedStep:
    """Return a function that takes a step of AdamW, with gradients clipped to norm 1.

    Args:
        model: the model, on `device`, with float32 parameters.
        logits_of: computes the model's logits (B, T, V) of ids (B, T).
        batch: ids (B, T + 1).
        dtype: "float32", or "bfloat16" to compute under autocast.
        compiled: whether to compile the loss with torch.compile.
        device: "cpu" or "cuda".
    """
    import torch

    ids = torch.tensor(batch, dtype=torch.long, device=device)
    adamw = torch.optim.AdamW(model.parameters(), fused=device == "cuda")

    def loss() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
            logits = logits_of(ids[:, :-1])
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    measured: Any = torch.compile(loss) if compiled else loss

    def step() -> tuple[float, float | None]:
        begin = time.perf_counter()
        adamw.zero_grad()
        measured().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        wait(device)
        return time.perf_counter() - begin, peak_mebibytes()

    return step


def transformers_training_step(
    folder: str, cfg: GPTConfig, rows: int, length: int, dtype: str, compiled: bool, device: str
) -> TimedStep:
    """Return a function that takes a step of transformers' GPT-2 on the same ids as ours."""
    model = _load(folder, "float32", device).train()

    def logits_of(ids: "Tensor") -> "Tensor":
        return model(ids, use_cache=False).logits

    batch = token_batch(cfg, rows, length)
    return torch_training_step(model, logits_of, batch, dtype, compiled=compiled, device=device)


def transformers_generate(folder: str, dtype: str, compiled: bool, device: str) -> GenerateFn:
    """Return greedy generation by transformers' GPT-2.

    A prompt that is followed by one token is read without a cache. Otherwise an eager model has a
    cache that grows. A compiled one reads prompts eagerly, as transformers advises, has a cache of
    fixed size, and on a GPU replays its steps as CUDA graphs.
    """
    import torch
    from transformers import DynamicCache, StaticCache

    model = _load(folder, dtype, device).eval()
    caches: dict[tuple[int, int], StaticCache] = {}

    def next_token(ids: torch.Tensor, cache: Any) -> torch.Tensor:
        out = model(ids, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1)
        return out.logits[:, -1].argmax(-1, keepdim=True)

    read: Any = torch.compile(next_token, dynamic=False) if compiled else next_token
    decode: Any = (
        torch.compile(next_token, dynamic=False, mode="reduce-overhead") if compiled else next_token
    )

    def cache_for(rows: int, length: int) -> Any:
        if not compiled:
            return DynamicCache(config=model.config)
        if (rows, length) in caches:
            caches[rows, length].reset()
        else:
            caches[rows, length] = StaticCache(config=model.config, max_cache_len=length)
        return caches[rows, length]

    def call(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
        with torch.no_grad():
            begin = time.perf_counter()
            ids = torch.tensor(prompts, device=device)
            if new_tokens == 1:
                cache, tokens = None, [read(ids, None)]
            else:
                cache = cache_for(len(prompts), len(prompts[0]) + new_tokens)
                tokens = [next_token(ids, cache)]
            wait(device)
            prefilled = time.perf_counter()
            for _ in range(new_tokens - 1):
                tokens.append(decode(tokens[-1], cache).clone())  # a graph reuses its output
            generated = torch.cat(tokens, dim=1).tolist()
        return prefilled - begin, time.perf_counter() - prefilled, generated

    return call


def wait(device: str) -> None:
    """Wait until `device` has finished its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def _load(folder: str, dtype: str, device: str) -> Any:
    """Return the GPT-2 of a folder, with fused attention and, as in JAX, TF32 products."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.set_float32_matmul_precision("high")
    model: Any = GPT2LMHeadModel.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    return model.to(device)
