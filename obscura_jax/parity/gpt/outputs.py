"""Find the logits in the output of a PyTorch model."""

from collections.abc import Mapping
from typing import Any

from obscura_jax.parity.guest import OutputError


def logits_in(output: Any, ids_shape: tuple[int, ...], vocab_size: int | None = None) -> Any:
    """Return the logits (B, T, V) from the value that a model returned for ids (B, T).

    The value may be the tensor itself, an object or a mapping with `logits`, or a tuple or list
    that begins with the logits, such as (logits, loss).

    Args:
        output: the returned value.
        ids_shape: (B, T).
        vocab_size: V; None accepts any.

    Raises:
        OutputError: if there are no logits; the message describes the value.
    """
    import torch

    found = output
    if isinstance(output, Mapping):
        found = output.get("logits", output)
    elif not isinstance(output, torch.Tensor):
        found = getattr(output, "logits", output)
        if isinstance(found, tuple | list) and found:
            found = found[0]
    if (
        isinstance(found, torch.Tensor)
        and found.is_floating_point()
        and found.ndim == 3
        and tuple(found.shape[:2]) == tuple(ids_shape)
        and vocab_size in (None, found.shape[-1])
    ):
        return found
    wanted = f"({', '.join(map(str, ids_shape))}, {'V' if vocab_size is None else vocab_size})"
    raise OutputError(
        f"it returned {described(output)}; return logits {wanted}, or a tuple that begins with "
        "them, or a dictionary or object with `logits`"
    )


def described(value: Any) -> str:
    """Describe `value` in a few words."""
    import torch

    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a {kind} tensor of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value)) or 'nothing'}"
    if isinstance(value, tuple | list):
        parts = ", ".join(described(part) for part in value[:3]) or "nothing"
        return f"a {type(value).__name__} of {parts}{' and more' if len(value) > 3 else ''}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
