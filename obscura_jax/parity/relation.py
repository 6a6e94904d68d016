"""Relations of two arrays: a factor, an offset, a sign, another order of the axes."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
TOLERANCE = 1e-9  # values in float64 that differ by less are the same, relative to their rms
OUTPUT = 3  # outputs are equal up to this multiple of the tolerance, as single entries are
_FEW_AXES = 5
_LARGE = 1 << 20
_SAMPLE = 64  # entries that are compared before all others


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
        if np.abs(x - z).max() <= TOLERANCE * size:
            return Relation("equal up to a sign" if sign < 0 else "the same values", sign)
        factor = other / size
        if np.abs(z - factor * x).max() <= TOLERANCE * other:
            words = f"JAX's is PyTorch's times {_number(sign * factor)}"
            return Relation(words, sign * factor)
        offset = float(np.mean(z - x))
        if sign > 0 and np.abs(z - x - offset).max() <= TOLERANCE * max(size, other):
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
    if x.size == math.prod(shape):
        for axes in _orders(x, _FEW_AXES, _LARGE):
            yield axes, x.transpose(axes).reshape(shape)


def _orders(x: Array, few: int, large: int | None) -> Iterator[tuple[int, ...]]:
    """Yield the orders of the axes of an array; only its own if it has many axes or entries."""
    own = tuple(range(x.ndim))
    yield own
    if x.ndim <= few and (large is None or x.size <= large):
        yield from (axes for axes in permutations(own) if axes != own)


def arrangement(
    theirs: Array,
    ours: Array,
    tolerance: float = 1e-6,
    *,
    few: int = _FEW_AXES,
    large: int | None = _LARGE,
) -> tuple[int, ...] | None:
    """Return the order of axes that turns one array into another of the same values, if any.

    Args:
        theirs: the array whose axes are reordered.
        ours: the other array; its shape may be another one.
        tolerance: difference that is allowed, relative to the largest entry.
        few: number of axes up to which other orders than the array's own are tried.
        large: number of entries up to which they are; None for any number.
    """
    if theirs.size != ours.size:
        return None
    allowed = tolerance * (float(np.abs(ours[np.isfinite(ours)]).max(initial=0.0)) or 1.0)
    places = np.linspace(0, ours.size - 1, min(_SAMPLE, ours.size)).astype(np.int64)
    sample = ours.reshape(-1)[places]
    for axes in _orders(theirs, few, large):
        turned = theirs.transpose(axes)
        entries = turned[np.unravel_index(places, turned.shape)] if turned.ndim else turned
        if _near(entries, sample, allowed) and _near(turned.reshape(ours.shape), ours, allowed):
            return axes
    return None


def _near(x: Array, y: Array, allowed: float) -> bool:
    with np.errstate(invalid="ignore"):
        return bool(((np.abs(x - y) <= allowed) | (x == y)).all())


def share(sample: Array, pool: Array) -> float:
    """Return the share of some values that are among others; 1 if there are none.

    Args:
        sample: the values.
        pool: the others, sorted; at least one.
    """
    if not sample.size:
        return 1.0
    at = np.clip(np.searchsorted(pool, sample), min(1, pool.size - 1), pool.size - 1)
    near = np.minimum(np.abs(pool[at] - sample), np.abs(pool[at - 1] - sample))
    return float(np.mean(near <= 1e-7 * np.abs(sample)))


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
        return float(np.abs(x - y).max()) / (rms(x) or rms(y) or 1.0)


def rms(x: Array) -> float:
    """Return the root mean square of the finite entries, also if their squares overflow."""
    x = x[np.isfinite(x)].astype(np.float64)
    largest = float(np.abs(x).max(initial=0.0))
    return largest * math.sqrt(float(np.mean(np.square(x / largest)))) if largest else 0.0


def correlation(x: Array, y: Array) -> float:
    """Return the correlation of two arrays of one shape; 0 if one is constant."""
    a, b = x.reshape(-1).astype(np.float64), y.reshape(-1).astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not finite.all():
        a, b = a[finite], b[finite]
    if not a.size:
        return 0.0
    a, b = (v / (float(np.abs(v).max()) or 1.0) for v in (a, b))  # sums of masks' values overflow
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / size if size and math.isfinite(size) else 0.0
