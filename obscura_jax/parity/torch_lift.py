"""Run a PyTorch program in float64: convert its modules for a while, and find what it captured."""

import functools
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def modules_of(call: Callable[..., Any]) -> list[Any]:
    """Return the modules that a callable is or captures, outermost first.

    They are looked for in a bound method's object, in partial arguments, in closures and in the
    globals that a function names.
    """
    import torch

    found: dict[int, Any] = {}
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if depth < 0 or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, torch.nn.Module):
            found.setdefault(id(value), value)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                visit(part, depth - 1)
        elif isinstance(value, types.MethodType):
            visit(value.__self__, depth - 1)
            visit(value.__func__, depth - 1)
        elif isinstance(value, types.FunctionType):
            for cell in value.__closure__ or ():
                try:
                    visit(cell.cell_contents, depth - 1)
                except ValueError:  # an empty cell
                    continue
            for name in value.__code__.co_names:
                visit(value.__globals__.get(name), 0)
        elif isinstance(value, dict):
            for part in value.values():
                visit(part, depth - 1)
        elif isinstance(value, list | tuple):
            for part in value:
                visit(part, depth - 1)
        elif not isinstance(value, type) and hasattr(value, "__dict__"):
            for part in vars(value).values():
                visit(part, min(depth - 1, 1))

    visit(call, 4)
    inside = {id(part) for m in found.values() for part in m.modules() if part is not m}
    return [module for key, module in found.items() if key not in inside]


def tensor_names(modules: list[Any]) -> tuple[dict[int, str], set[int]]:
    """Return the name of each parameter and buffer by its id, and the ids of the parameters."""
    names: dict[int, str] = {}
    parameters: set[int] = set()
    for module in modules:
        for name, tensor in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(tensor), name)
            parameters.add(id(tensor))
        for name, tensor in module.named_buffers(remove_duplicate=False):
            names.setdefault(id(tensor), name)
    return names, parameters


@contextmanager
def in_float64(modules: list[Any]) -> Iterator[None]:
    """Context manager: give modules float64 parameters and buffers, and restore their own.

    Within it, tensors that the program creates without a type are float64 too, and the fused
    encoder layer of PyTorch is off.
    """
    import torch

    changed: list[tuple[Any, Any]] = []
    buffers: list[tuple[dict[str, Any], str, Any]] = []
    default, fused = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    try:
        for module in modules:
            for part in module.modules():
                for parameter in part._parameters.values():
                    if parameter is not None and is_low(parameter.dtype):
                        changed.append((parameter, parameter.data))
                        parameter.data = lifted(parameter.data)
                for name, buffer in part._buffers.items():
                    if buffer is not None:
                        buffers.append((part._buffers, name, buffer))
                        copy = lifted(buffer) if is_low(buffer.dtype) else buffer.clone()
                        part._buffers[name] = copy
        torch.set_default_dtype(torch.float64)
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        torch.set_default_dtype(default)
        torch.backends.mha.set_fastpath_enabled(fused)
        for parameter, data in changed:
            parameter.data = data
        for table, name, buffer in buffers:
            table[name] = buffer


def is_low(dtype: Any) -> bool:
    """Return True for floating or complex types below 64 bits a number."""
    import torch

    return dtype in (
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
    )


def lifted(tensor: Any) -> Any:
    """Return a tensor in float64 or complex128."""
    import torch

    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)
