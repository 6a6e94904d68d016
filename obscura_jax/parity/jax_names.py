"""Find names for the arrays that a JAX function captures: parameters in closures and modules."""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax


def captured_names(call: Callable[..., Any]) -> dict[int, str]:
    """Return a name for each array that a callable is made of or captures, by its id.

    Arrays are found in a module's attributes (NNX, Equinox, Keras), in partial arguments, in
    closures and in the globals that a function names.
    """
    names: dict[int, str] = {}
    seen: set[int] = set()

    def visit(value: Any, name: str, depth: int) -> None:
        if depth < 0 or id(value) in seen or isinstance(value, type | types.ModuleType):
            return
        seen.add(id(value))
        if isinstance(value, functools.partial):
            visit(value.func, name, depth - 1)
            for part in value.args:
                visit(part, "", depth - 1)
            for key, part in value.keywords.items():
                visit(part, key, depth - 1)
        elif isinstance(value, types.MethodType):
            visit(value.__self__, name, depth - 1)
            visit(value.__func__, name, depth - 1)
        elif isinstance(value, types.FunctionType):
            free = value.__code__.co_freevars
            for key, cell in zip(free, value.__closure__ or (), strict=True):
                try:
                    visit(cell.cell_contents, key, depth - 1)
                except ValueError:  # an empty cell
                    continue
            for key in value.__code__.co_names:
                if key in value.__globals__:
                    visit(value.__globals__[key], key, 0)
        elif (arrays := _arrays_of(value)) is not None:
            for path, array in arrays.items():
                names.setdefault(id(array), f"{name}.{path}" if name else path)
        wrapped = getattr(value, "__wrapped__", None)
        if wrapped is not None:
            visit(wrapped, name, depth - 1)

    visit(call, "", 4)
    return names


def _arrays_of(value: Any) -> dict[str, Any] | None:
    """Return the arrays of a module or tree by path, or None if it has none."""
    if _is_nnx(value):
        from flax import nnx

        leaves = nnx.to_flat_state(nnx.state(value))
        return {".".join(map(str, path)): _content(leaf) for path, leaf in leaves}
    if any(kind.__module__.startswith("keras.") for kind in type(value).__mro__):
        variables = value.variables
        return {v.path.replace("/", "."): v.value for v in variables}
    found = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(value)[0]
        if hasattr(leaf, "dtype") and hasattr(leaf, "shape")
    }
    return found or None


def _is_nnx(value: Any) -> bool:
    """Return True for an NNX module, without importing Flax for anything else."""
    return any(
        kind.__module__.startswith("flax.nnx") and kind.__name__ == "Module"
        for kind in type(value).__mro__
    )


def _content(variable: Any) -> Any:
    """Return the array that an NNX variable holds."""
    get = getattr(variable, "get_value", None)
    return get() if get is not None else variable
