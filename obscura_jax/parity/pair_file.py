"""Load a user's pair of programs: a Python file with functions torch_side() and jax_side()."""

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from obscura_jax.extras import require
from obscura_jax.parity.guest import Guest
from obscura_jax.parity.program import JaxProgram, TorchProgram, arrays_in
from obscura_jax.parity.user_file import import_file

SIDES = ("torch", "jax")
_EXAMPLE = "`obscura parity --new FILE.py` writes an example"
_Program = TypeVar("_Program", TorchProgram, JaxProgram)


@dataclass(frozen=True)
class Pair:
    """A file with two programs.

    Attributes:
        torch: calls torch_side() and returns the PyTorch program.
        jax: calls jax_side() and returns the JAX program.
        guest: runs the file's code.
    """

    torch: Callable[[], TorchProgram]
    jax: Callable[[], JaxProgram]
    guest: Guest


def load_pair(path: str | Path, sides: Collection[str] = SIDES) -> Pair:
    """Run a file that defines torch_side() and jax_side(), which are called later.

    Each of them returns a callable and its inputs: `module, (ids,)`, or `module, ids` if the only
    input is an array; `function, args, kwargs`; or a program that `torch_program` or `jax_program`
    returned.

    Args:
        path: the file.
        sides: the sides that the file must define, "torch" or "jax".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it fails or lacks a function, or PyTorch is needed and missing. A side that
            fails or returns something else raises ValueError when it is called.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; {_EXAMPLE}")
    if "torch" in sides:
        require("torch", "parity", "obscura parity")
    guest = Guest(str(path), path.parent)
    module = import_file(path, guest)
    for side in sides:
        _check_defined(f"{side}_side", module, path)
    guest.label = f"{path}:"
    return Pair(
        partial(_called, TorchProgram, module, guest),
        partial(_called, JaxProgram, module, guest),
        guest,
    )


def _check_defined(name: str, module: ModuleType, path: Path) -> None:
    if name not in vars(module):
        raise ValueError(f"{path} has no function {name}(); add it ({_EXAMPLE})")
    if not callable(found := vars(module)[name]):
        kind = type(found).__name__
        raise ValueError(f"{path}: {name} is not a function but {kind}; write `def {name}():`")


def _called(kind: type[_Program], module: ModuleType, guest: Guest) -> _Program:
    name = "torch_side" if kind is TorchProgram else "jax_side"
    with guest(f"{name}() fails"):
        result = vars(module)[name]()
    program = _program(kind, result, f"{guest.label} {name}()")
    if kind is JaxProgram and arrays_in((program.args, program.kwargs), _is_torch_tensor):
        raise ValueError(
            f"{guest.label} {name}() returns a PyTorch tensor as an input; convert it with .numpy()"
        )
    return program


def _program(kind: type[_Program], result: Any, returns: str) -> _Program:
    """Return the program that a side returned, in any of the forms of `load_pair`."""
    if isinstance(result, kind):
        return result
    if isinstance(result, TorchProgram | JaxProgram):
        made, needed = ("JAX", "torch") if kind is TorchProgram else ("PyTorch", "jax")
        raise ValueError(f"{returns} returns a {made} program; return a {needed}_program(...)")
    parts = result if isinstance(result, tuple) else (result,)
    if len(parts) == 2 and callable(parts[0]) and isinstance(parts[1], Mapping):
        raise ValueError(
            f"{returns} returns a callable and {type(parts[1]).__name__}; return "
            "`callable, (), inputs` to give the inputs by name, or `callable, (inputs,)`"
        )
    args = _inputs(parts[1]) if len(parts) in (2, 3) else None
    kwargs = parts[2] if len(parts) == 3 else {}
    if args is None or not callable(parts[0]) or not isinstance(kwargs, Mapping):
        kinds = ", ".join(type(part).__name__ for part in parts)
        shown = f"({kinds})" if isinstance(result, tuple) else kinds
        raise ValueError(
            f"{returns} returns {shown}; return a module or a function, and a tuple of its "
            "inputs, such as `return module, (x,)`"
        )
    return kind(parts[0], args, dict(kwargs))


def _inputs(given: Any) -> tuple[Any, ...] | None:
    """Return the inputs as a tuple, or None if they are neither several nor an array."""
    if isinstance(given, tuple | list):
        return tuple(given)
    return (given,) if hasattr(given, "shape") and hasattr(given, "dtype") else None


def _is_torch_tensor(value: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
