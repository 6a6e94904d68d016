"""Read the named intermediates of a PyTorch model, by hooks on its modules.

Names are those of `nn.intermediates`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.gpt.capture import Reduce
from obscura_jax.parity.gpt.outputs import logits_in


@dataclass(frozen=True)
class Tap:
    """The place in a PyTorch model where an intermediate can be read.

    Attributes:
        name: our name for the intermediate.
        module: path of the module; "" is the model.
        side: "input" or "output" of the module, or "scores" or "weights" inside attention.
        third: third of the width to read if queries, keys and values are one tensor, else None.
    """

    name: str
    module: str
    side: str = "output"
    third: int | None = None


def course_taps(n_layers: int) -> list[Tap]:
    """Return the taps of a model with the course's modules, in forward order."""
    taps = [Tap("tok_emb", "tok_emb"), Tap("pos_emb", "pos_emb")]
    taps.append(Tap("embeddings", "trf_blocks.0", "input"))
    for n in range(n_layers):
        block = f"trf_blocks.{n}"
        parts = ("norm1", "att.W_query", "att.W_key", "att.W_value")
        taps += [Tap(f"{block}.{part}", f"{block}.{part}") for part in parts]
        taps.append(Tap(f"{block}.att.scores", f"{block}.att", "scores"))
        taps.append(Tap(f"{block}.att.weights", f"{block}.att", "weights"))
        taps.append(Tap(f"{block}.att.context", f"{block}.att.out_proj", "input"))
        taps.append(Tap(f"{block}.att.out_proj", f"{block}.att.out_proj"))
        taps.append(Tap(f"{block}.residual", f"{block}.norm2", "input"))
        parts = ("norm2", "ff.layers.0", "ff.layers.1", "ff.layers.2")
        taps += [Tap(f"{block}.{part}", f"{block}.{part}") for part in parts]
        # The activation may be a function instead of a module.
        taps.append(Tap(f"{block}.ff.layers.1", f"{block}.ff.layers.2", "input"))
        taps.append(Tap(block, block))
    return [*taps, Tap("final_norm", "final_norm"), Tap("logits", "")]


def hugging_face_taps(n_layers: int) -> list[Tap]:
    """Return the taps of transformers' `GPT2LMHeadModel` with eager attention, in forward order."""
    body = "transformer"
    taps = [Tap("tok_emb", f"{body}.wte"), Tap("pos_emb", f"{body}.wpe")]
    taps.append(Tap("embeddings", f"{body}.drop"))
    for n in range(n_layers):
        block, h = f"trf_blocks.{n}", f"{body}.h.{n}"
        taps.append(Tap(f"{block}.norm1", f"{h}.ln_1"))
        for third, part in enumerate(("W_query", "W_key", "W_value")):
            taps.append(Tap(f"{block}.att.{part}", f"{h}.attn.c_attn", "output", third))
        taps.append(Tap(f"{block}.att.scores", f"{h}.attn", "scores"))
        taps.append(Tap(f"{block}.att.weights", f"{h}.attn", "weights"))
        taps.append(Tap(f"{block}.att.context", f"{h}.attn.c_proj", "input"))
        taps.append(Tap(f"{block}.att.out_proj", f"{h}.attn.c_proj"))
        taps.append(Tap(f"{block}.residual", f"{h}.ln_2", "input"))
        taps.append(Tap(f"{block}.norm2", f"{h}.ln_2"))
        taps.append(Tap(f"{block}.ff.layers.0", f"{h}.mlp.c_fc"))
        taps.append(Tap(f"{block}.ff.layers.1", f"{h}.mlp.act"))
        taps.append(Tap(f"{block}.ff.layers.2", f"{h}.mlp.c_proj"))
        taps.append(Tap(block, h))
    return [*taps, Tap("final_norm", f"{body}.ln_f"), Tap("logits", "")]


def capture_torch(
    module: Any,
    ids: NDArray[Any],
    taps: list[Tap],
    reduce: Reduce | None = None,
    vocab_size: int | None = None,
) -> dict[str, NDArray[Any]]:
    """Return the intermediates of a PyTorch model on ids (B, T), by name, in the order of `taps`.

    The model runs in evaluation mode, without gradients; its state is then restored. An
    intermediate is omitted if the model lacks the module that its tap names, or if the module has
    no tensor there. Scores and weights belong to no module: they are the last product with two axes
    of length T before the softmax of an attention module, and the output of that softmax.

    Args:
        module: a PyTorch model that takes ids.
        ids: (B, T).
        taps: the places to read.
        reduce: stores `reduce(name, value)` instead of each value.
        vocab_size: number of columns of the logits; None accepts any.

    Raises:
        ValueError: if the model returns no logits (see `parity.outputs`).
    """
    import torch

    modules = dict(module.named_modules(remove_duplicate=False))
    found: dict[str, NDArray[Any]] = {}

    def record(tap: Tap, value: Any) -> None:
        if tap.module == "":
            value = logits_in(value, ids.shape, vocab_size)
        elif isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, torch.Tensor):
            return
        if tap.third is not None:
            value = value.chunk(3, dim=-1)[tap.third]
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        stored = array if reduce is None else reduce(tap.name, array)
        found[tap.name] = stored.copy()  # the model may overwrite its tensor later

    # The taps of each module and side, by path: one module may be used at several paths.
    places: dict[tuple[Any, str], dict[str, list[Tap]]] = {}
    for tap in taps:
        if tap.module in modules:
            of_module = places.setdefault((modules[tap.module], tap.side), {})
            of_module.setdefault(tap.module, []).append(tap)
    with ExitStack() as stack:
        stack.enter_context(_evaluation(module))
        stack.enter_context(torch.no_grad())
        inside: list[str] = []
        attention = {(tap.module, tap.side): tap for tap in taps}
        stack.enter_context(_attention_watch(ids.shape[-1], inside, attention, record))
        for (part, side), paths in places.items():
            if side == "scores":
                stack.enter_context(_entered(part, list(paths), inside))
            elif side in ("input", "output"):
                stack.enter_context(_hooked(part, side, list(paths.values()), record))
        module(torch.from_numpy(ids.astype(np.int64)))  # a copy: the model may write into its input
    return {tap.name: found[tap.name] for tap in taps if tap.name in found}


@contextmanager
def _evaluation(module: Any) -> Iterator[None]:
    """Context manager: set every part to evaluation mode, and restore its mode at the end."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _hooked(
    module: Any, side: str, places: list[list[Tap]], record: Callable[[Tap, Any], None]
) -> Iterator[None]:
    """Context manager: record the n-th call of a module for the taps of its n-th place."""
    turns = cycle(places)

    def show(value: Any) -> None:
        for tap in next(turns):
            record(tap, value)

    if side == "input":
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: show(args or tuple(kwargs.values())), with_kwargs=True
        )
    else:
        handle = module.register_forward_hook(lambda _, args, out: show(out))
    with _removed(handle):
        yield


@contextmanager
def _entered(module: Any, paths: list[str], inside: list[str]) -> Iterator[None]:
    """Context manager: keep the path of the running attention module at the end of `inside`."""
    turns = cycle(paths)
    first = module.register_forward_pre_hook(lambda *_: inside.append(next(turns)))
    last = module.register_forward_hook(lambda *_: (inside.pop(), None)[1])
    with _removed(first), _removed(last):
        yield


@contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _attention_watch(
    length: int,
    inside: list[str],
    taps: Mapping[tuple[str, str], Tap],
    record: Callable[[Tap, Any], None],
) -> Any:
    """Return a mode that records the product and the softmax inside each attention module."""
    from torch.overrides import TorchFunctionMode

    products = {"matmul", "__matmul__", "einsum"}

    class Watch(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.softmaxed: set[str] = set()

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            name = getattr(func, "__name__", "")
            if inside and inside[-1] not in self.softmaxed:
                here = inside[-1]
                scores = getattr(out, "ndim", 0) == 4 and out.shape[-2:] == (length, length)
                if scores and name in products:
                    record(taps[here, "scores"], out)
                elif scores and name == "softmax":
                    record(taps[here, "weights"], out)
                    self.softmaxed.add(here)
            return out

    return Watch()
