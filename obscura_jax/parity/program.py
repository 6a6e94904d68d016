"""The two sides of a comparison: a callable with its inputs, and the arrays in what it returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any

Pick = str | int | Callable[[Any], Any] | None


class NotComparableError(ValueError):
    """Two programs cannot be compared; the message is one sentence that says why."""


@dataclass(frozen=True)
class TorchProgram:
    """A PyTorch program: a module or a function, with its inputs; see `torch_program`."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: Pick = None


@dataclass(frozen=True)
class JaxProgram:
    """A JAX program: a function, with its inputs; see `jax_program`."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    out: Pick = None


def name_of(call: Any) -> str:
    """Return the name of a function, or of a module's class."""
    while isinstance(call, partial) or hasattr(call, "__wrapped__"):
        call = call.func if isinstance(call, partial) else call.__wrapped__
    return str(getattr(call, "__qualname__", type(call).__name__))


def torch_program(
    call: Callable[..., Any], *args: Any, out: Pick = None, **kwargs: Any
) -> TorchProgram:
    """Return a PyTorch side for `compare`.

    Args:
        call: a module in evaluation mode, or any function of tensors.
        args: its inputs.
        out: the part of its result to compare: an attribute, a key or an index, or a function of
            the result. Default: every tensor in it.
        kwargs: its inputs by name.

    Raises:
        TypeError: if `call` cannot be called.
    """
    return TorchProgram(_callable(call, "torch_program"), args, kwargs, out)


def jax_program(
    call: Callable[..., Any], *args: Any, out: Pick = None, **kwargs: Any
) -> JaxProgram:
    """Return a JAX side for `compare`.

    Args:
        call: a pure function of arrays, such as `functools.partial(model.apply, params)`; an NNX,
            Equinox or Keras module; or any other callable that `jax.make_jaxpr` accepts.
        args: its inputs.
        out: the part of its result to compare, as for `torch_program`.
        kwargs: its inputs by name.

    Raises:
        TypeError: if `call` cannot be called.
    """
    return JaxProgram(_callable(call, "jax_program"), args, kwargs, out)


def _callable(call: Any, name: str) -> Callable[..., Any]:
    if not callable(call):
        raise TypeError(f"{name} takes a module or a function first, not {type(call).__name__}")
    checked: Callable[..., Any] = call
    return checked


def picked(result: Any, out: Pick, side: str) -> Any:
    """Return the part of a program's result that `out` names.

    Raises:
        NotComparableError: if the result has no such part.
    """
    if out is None:
        return result
    if callable(out):
        return out(result)
    try:
        if isinstance(out, int) or isinstance(result, Mapping):
            return result[out]
        return getattr(result, out)
    except (AttributeError, KeyError, IndexError, TypeError):
        kind = type(result).__name__
        has = _parts_of(result)
        raise NotComparableError(
            f"the {side} side returns {kind} without {out!r}"
            + (f"; it has {', '.join(has)}" if has else "")
        ) from None


def _parts_of(result: Any) -> list[str]:
    if isinstance(result, Mapping):
        return [repr(key) for key in result]
    if is_dataclass(result):
        return [f.name for f in fields(result)]
    if isinstance(result, Sequence):
        return [f"{len(result)} item{'s' * (len(result) != 1)}"]
    return []


def arrays_in(result: Any, is_array: Callable[[Any], bool]) -> dict[str, Any]:
    """Return the arrays in a nested result by name: its keys, fields and indices."""
    found: dict[str, Any] = {}

    def visit(value: Any, name: str) -> None:
        if is_array(value):
            found[name] = value
        elif isinstance(value, Mapping):
            for key, part in value.items():
                visit(part, f"{name}.{key}" if name else str(key))
        elif is_dataclass(value) and not isinstance(value, type):
            for part in fields(value):
                visit(getattr(value, part.name), f"{name}.{part.name}" if name else part.name)
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            for key, part in zip(value._fields, value, strict=True):
                visit(part, f"{name}.{key}" if name else key)
        elif isinstance(value, list | tuple):
            for n, part in enumerate(value):
                visit(part, f"{name}[{n}]")

    visit(result, "")
    return found
