"""Read the named intermediates of a PyTorch model, by hooks on its modules.

Names are those of `nn.intermediates`. Attention scores and weights are the output of no module, so
they are not read; `places` compares every operation.
"""

from collections.abc import Callable
from contextlib import ExitStack
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.gpt.capture import Reduce
from obscura_jax.parity.gpt.outputs import logits_in

# Each part of a block, and the module whose output it is, or with ">" whose input.
_COURSE = {
    "norm1": "norm1",
    "att.W_query": "att.W_query",
    "att.W_key": "att.W_key",
    "att.W_value": "att.W_value",
    "att.context": ">att.out_proj",
    "att.out_proj": "att.out_proj",
    "residual": ">norm2",
    "norm2": "norm2",
    "ff.layers.0": "ff.layers.0",
    "ff.layers.1": ">ff.layers.2",  # the activation may be a function instead of a module
    "ff.layers.2": "ff.layers.2",
}
_HUGGING_FACE = {
    "norm1": "ln_1",
    "att.context": ">attn.c_proj",
    "att.out_proj": "attn.c_proj",
    "residual": ">ln_2",
    "norm2": "ln_2",
    "ff.layers.0": "mlp.c_fc",
    "ff.layers.1": "mlp.act",
    "ff.layers.2": "mlp.c_proj",
}


class Tap(NamedTuple):
    """The place in a PyTorch model where an intermediate can be read.

    Attributes:
        name: our name for the intermediate.
        module: path of the module; "" is the model.
        is_input: whether it is the input of the module instead of its output.
    """

    name: str
    module: str
    is_input: bool = False


LOGITS = Tap("logits", "")


def course_taps(n_layers: int) -> list[Tap]:
    """Return the taps of a model with the course's modules, in forward order."""
    taps = [Tap("tok_emb", "tok_emb"), Tap("pos_emb", "pos_emb")]
    taps.append(Tap("embeddings", "trf_blocks.0", is_input=True))
    blocks = _blocks("trf_blocks", n_layers, _COURSE)
    return [*taps, *blocks, Tap("final_norm", "final_norm"), LOGITS]


def hugging_face_taps(n_layers: int) -> list[Tap]:
    """Return the taps of transformers' `GPT2LMHeadModel`, in forward order.

    Queries, keys and values are one tensor there, so they are left out.
    """
    body = "transformer"
    taps = [Tap("tok_emb", f"{body}.wte"), Tap("pos_emb", f"{body}.wpe")]
    taps.append(Tap("embeddings", f"{body}.drop"))
    blocks = _blocks(f"{body}.h", n_layers, _HUGGING_FACE)
    return [*taps, *blocks, Tap("final_norm", f"{body}.ln_f"), LOGITS]


def _blocks(path: str, n_layers: int, parts: dict[str, str]) -> list[Tap]:
    taps = []
    for n in range(n_layers):
        for part, module in parts.items():
            place = f"{path}.{n}.{module.removeprefix('>')}"
            taps.append(Tap(f"trf_blocks.{n}.{part}", place, module.startswith(">")))
        taps.append(Tap(f"trf_blocks.{n}", f"{path}.{n}"))
    return taps


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
    no tensor there.

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
        value = value.detach().cpu()
        # NumPy has no bfloat16.
        array = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        stored = array if reduce is None else reduce(tap.name, array)
        found[tap.name] = stored.copy()  # the model may overwrite its tensor later

    # The taps of each module and side, by path: one module may be used at several paths.
    places: dict[tuple[Any, bool], dict[str, list[Tap]]] = {}
    for tap in taps:
        if tap.module in modules:
            of_module = places.setdefault((modules[tap.module], tap.is_input), {})
            of_module.setdefault(tap.module, []).append(tap)
    with ExitStack() as stack:
        for part in module.modules():
            stack.callback(setattr, part, "training", part.training)
        module.eval()
        for (part, is_input), paths in places.items():
            stack.callback(_hook(part, is_input, list(paths.values()), record).remove)
        with torch.no_grad():
            module(torch.from_numpy(ids.astype(np.int64)))  # a copy: the model may write into it
    return {tap.name: found[tap.name] for tap in taps if tap.name in found}


def _hook(
    module: Any, is_input: bool, places: list[list[Tap]], record: Callable[[Tap, Any], None]
) -> Any:
    """Record the n-th call of a module for the taps of its n-th place, and return the hook."""
    turns = cycle(places)

    def show(value: Any) -> None:
        for tap in next(turns):
            record(tap, value)

    if is_input:
        return module.register_forward_pre_hook(
            lambda _, args, kwargs: show(args or tuple(kwargs.values())), with_kwargs=True
        )
    return module.register_forward_hook(lambda _, args, out: show(out))
