"""Relations of two arrays: a factor, an offset, a sign, another order of the axes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_EXACT = 1e-9
OUTPUT = 3  # outputs are equal up to this multiple of the tolerance, as single entries are
_FEW_AXES = 5
_LARGE = 1 << 20


@dataclass(frozen=True)
class Relation:
    """A rule by which the values of one array follow from those of another.

    Attributes:
        words: a description, such as "equal up to a factor of 0.125".
        factor: the factor, if there is one.
        offset: the number that is added, if there is one.
    """

    words: str
    factor: float | None = None
    offset: float | None = None


def relation(theirs: Array, ours: Array) -> Relation | None:
    """Return how `ours` (JAX) follows from `theirs` (PyTorch), or None if it does not simply."""
    x, y = (np.sort(v.reshape(-1).astype(np.float64)) for v in (theirs, ours))
    x, y = x[np.isfinite(x)], y[np.isfinite(y)]
    if x.size != y.size or x.size < 2:
        return None
    with np.errstate(over="ignore"):
        size = math.sqrt(float(np.mean(x * x)))
        other = math.sqrt(float(np.mean(y * y)))
    if not size or not other or not math.isfinite(size + other):
        return None
    for sign, z in ((1, y), (-1, -y[::-1])):
        if np.abs(x - z).max() <= _EXACT * size:
            return Relation("equal up to a sign" if sign < 0 else "the same values", sign)
        factor = other / size
        if np.abs(z - factor * x).max() <= _EXACT * other:
            words = f"JAX's is PyTorch's times {_number(sign * factor)}"
            return Relation(words, sign * factor)
        offset = float(np.mean(z - x))
        if sign > 0 and np.abs(z - x - offset).max() <= _EXACT * max(size, other):
            return Relation(f"JAX's is PyTorch's plus {_number(offset)}", offset=offset)
    apart = float(np.abs(x - y).max()) / size
    return Relation(f"close: at most {apart:.1e} of their size apart") if apart < 0.05 else None


def _number(x: float) -> str:
    """Return a number, with the root or the fraction that it is."""
    text = f"{x:.8g}"
    for name, value in (
        *((f"sqrt({n})", math.sqrt(n)) for n in range(2, 4097)),
        *((f"1/sqrt({n})", 1 / math.sqrt(n)) for n in range(2, 4097)),
        *((f"1/{n}", 1 / n) for n in range(2, 4097)),
        *((f"{n}/{n + 1}", n / (n + 1)) for n in range(2, 4097)),
        *((f"{n + 1}/{n}", (n + 1) / n) for n in range(2, 4097)),
    ):
        if abs(abs(x) - value) <= 1e-10 * value and not float(abs(x)).is_integer():
            return f"{text} ({'-' if x < 0 else ''}{name})"
    return text


def arrangements(x: Array, shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Array]]:
    """Yield each order of the axes of an array, with the array in that order and a new shape."""
    if x.size != math.prod(shape):
        return
    identity = tuple(range(x.ndim))
    yield identity, x.reshape(shape)
    if x.ndim > _FEW_AXES or x.size > _LARGE:
        return
    for axes in permutations(range(x.ndim)):
        if axes != identity:
            yield axes, x.transpose(axes).reshape(shape)


def arrangement(theirs: Array, ours: Array, tolerance: float = 1e-6) -> tuple[int, ...] | None:
    """Return the order of axes that turns one array into another of the same values, if any."""
    size = float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0)) or 1.0
    for axes, x in arrangements(theirs, ours.shape):
        with np.errstate(invalid="ignore"):
            same = (np.abs(x - ours) <= tolerance * size) | (x == ours)
        if same.all():
            return axes
    return None


def apart(theirs: Array, ours: Array) -> float:
    """Return the largest difference of two arrays of one shape, relative to their rms."""
    if theirs.size == 0:
        return 0.0
    if not np.issubdtype(theirs.dtype, np.floating) and not np.issubdtype(ours.dtype, np.floating):
        return float(not np.array_equal(theirs, ours))
    x, y = theirs.astype(np.float64), ours.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return math.inf
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return math.inf
    if not finite.any():
        return 0.0
    x, y = x[finite], y[finite]
    with np.errstate(over="ignore"):
        return float(np.abs(x - y).max()) / (_size(x) or _size(y) or 1.0)


def _size(x: Array) -> float:
    """Return the root mean square, also of numbers whose squares overflow."""
    largest = float(np.abs(x).max())
    return largest * math.sqrt(float(np.mean(np.square(x / largest)))) if largest else 0.0


def correlation(x: Array, y: Array) -> float:
    """Return the correlation of two arrays of one shape; 0 if one is constant."""
    a, b = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        a, b = a[finite], b[finite]
    if not a.size:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size and math.isfinite(size) else 0.0
