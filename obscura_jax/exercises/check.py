"""The check of an exercise of the notebooks: a reader's function is compared with ours."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.checks import check_choice
from obscura_jax.exercises.solutions import EXERCISES, Exercise

_ROUNDING = 1e-12  # of the largest entry; in float64, rounding is about 1e-16


class _WrongError(Exception):
    """The message continues a sentence whose subject is the reader's function."""


def check_exercise(name: str, yours: Callable[..., Any]) -> str:
    """Compare a solution of an exercise with ours, and return one sentence.

    An exception that the solution raises is not caught.

    Args:
        name: the exercise, as the notebook names it, such as "attention".
        yours: the solution, a function with the arguments of the exercise.

    Raises:
        ValueError: if no exercise has that name.
    """
    exercise = EXERCISES[check_choice("name", name, EXERCISES)]
    largest = 0.0
    try:
        with jax.enable_x64(True):
            # Each call has new arguments, in case the solution changes them.
            for first, again, for_ours in zip(*(exercise.cases() for _ in range(3)), strict=True):
                answers = [_answer(exercise, yours, case) for case in (first, again)]
                expected = jax.tree.map(np.asarray, exercise.ours(*for_ours))
                answers = [_arrays(answer, expected) for answer in answers]
                if not all(map(np.array_equal, *answers)):
                    raise _WrongError(
                        "returns something else when it is called again; "
                        "let its result depend on its arguments alone"
                    )
                largest = max(largest, _difference(answers[0], expected, exercise.hint))
            if exercise.static is not None:
                _check_compiles(yours, exercise.static, exercise.cases()[0])
    except _WrongError as wrong:
        return f"your {name} {wrong}"
    return f"your {name} equals ours " + (
        f"within {largest:.1e} in float64" if largest else "exactly"
    )


def _answer(exercise: Exercise, yours: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Return the answer of a solution, which must not change its arguments."""
    if not callable(yours):
        raise _WrongError("is not a function; pass the function itself, not its result")
    try:
        inspect.signature(yours).bind(*arguments)
    except TypeError:
        names = ", ".join(inspect.signature(exercise.ours).parameters)
        raise _WrongError(f"takes other arguments; define it with ({names})") from None
    before = jax.tree.leaves(arguments)
    answer = yours(*arguments)
    if [*map(id, before)] != [*map(id, jax.tree.leaves(arguments))]:
        raise _WrongError("changes its arguments; return new values instead")
    if answer is None:
        raise _WrongError("returns nothing yet; fill in the function and run this cell again")
    return answer


def _arrays(answer: Any, expected: Any) -> list[NDArray[Any]]:
    """Return the arrays in an answer, which must have the expected form."""
    tree: Any = jax.tree.structure(expected)
    kind = "one array" if hasattr(answer, "shape") else f"a {type(answer).__name__}"
    if isinstance(expected, tuple) and isinstance(answer, list):
        answer = tuple(answer)
    try:
        parts = tree.flatten_up_to(answer)
    except ValueError:
        shapes = jax.tree.map(np.shape, expected)
        raise _WrongError(
            f"returns {kind} where ours has other parts; return arrays of the shapes {shapes}"
        ) from None
    return [*map(_array, parts, jax.tree.leaves(expected))]


def _array(part: Any, expected: NDArray[Any]) -> NDArray[Any]:
    """Return a part of an answer as an array, which must have the expected shape and type."""
    wanted = f"return an array of the shape {expected.shape}"
    try:
        array = np.asarray(part)
    except ValueError:
        raise _WrongError(f"returns rows of unequal lengths; {wanted}") from None
    except TypeError:  # keys, for example
        raise _WrongError(f"returns something that is not an array of numbers; {wanted}") from None
    if array.dtype.kind not in "biufV":  # V: bfloat16
        kind = f"n array of {part.dtype}" if hasattr(part, "dtype") else f" {type(part).__name__}"
        raise _WrongError(f"returns a{kind}; {wanted}")
    if array.shape != expected.shape:
        raise _WrongError(
            f"returns the shape {array.shape}, and ours {expected.shape}; "
            "print the shapes inside your function"
        )
    integers = array.dtype.kind in "iu" and expected.dtype.kind in "iu"
    if array.dtype != expected.dtype and not integers:
        raise _WrongError(
            f"returns {array.dtype}, and ours {expected.dtype}; "
            "let the type follow that of the arguments"
        )
    if array.dtype.kind == "f" and np.isnan(array).any():
        place = np.argwhere(np.isnan(array))[0].tolist()
        raise _WrongError(f"returns NaN at {place}; look for 0 / 0 and for infinite numbers")
    return array


def _difference(answer: list[NDArray[Any]], expected: Any, hint: str) -> float:
    """Return the largest difference of an answer from ours, which must be rounding."""
    largest = 0.0
    for mine, (path, ours) in zip(answer, jax.tree.leaves_with_path(expected), strict=True):
        apart = np.abs(mine.astype(np.float64) - ours.astype(np.float64))
        largest = max(largest, float(apart.max()))
        if apart.max() > _ROUNDING * np.abs(ours).max():
            index = np.unravel_index(apart.argmax(), apart.shape)
            place = jax.tree_util.keystr(path) + (str([*map(int, index)]) if index else "")
            by = f" by {apart.max():.2g}" if ours.dtype.kind == "f" else ""
            at = f" at {place}" if place else ""
            both = f"yours is {_number(mine[index])}, ours {_number(ours[index])}"
            raise _WrongError(f"differs from ours{by}{at}, where {both}; {hint}")
    return largest


def _number(entry: Any) -> str:
    return f"{entry:.4g}" if entry.dtype.kind == "f" else str(entry)


def _check_compiles(
    yours: Callable[..., Any], static: tuple[int, ...], arguments: tuple[Any, ...]
) -> None:
    try:
        jax.jit(yours, static_argnums=static).lower(*arguments)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        raise _WrongError(
            "equals ours, but cannot be compiled, because Python decides by a value; "
            "let lax.while_loop and jnp.where decide"
        ) from None
