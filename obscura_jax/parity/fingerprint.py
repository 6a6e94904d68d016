"""Summarize an array so that two arrays with the same values, in any order, can be recognized.

A fingerprint holds sums over the entries, so it does not depend on their order, and the layouts of
two programs may differ. Two fingerprints are close if the values are equal up to a relative
tolerance. Exact zeros, infinities and numbers beyond 1e30 are left out, because padding and masks
differ between programs that compute the same result.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEAST = 4  # an array with fewer regular entries proves nothing
_HUGE = 1e30
_TINY = 1e-150  # smaller numbers are 0 but for rounding; their squares are 0
_SORTED = 1 << 13  # up to this size the sorted values themselves are kept and compared
_WAVES = 1 << 17  # up to this size sines of the values are summed too, which takes long
_CHUNK = 1 << 21  # entries that are summed at a time, to save memory
_FREQUENCIES = np.array([1.7, 3.9, 8.3])
_PHASES = np.array([0.3, 1.1, 2.3])
# The largest change of each number for a relative change of 1 of the values, relative to 1 + |it|.
_SLOPES = np.array([2.0, 2.0, 6.0, 8.0, 2.0, 2.0, *2 * _FREQUENCIES])


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A summary of an array.

    Attributes:
        kind: "numbers"; "constant", if all regular entries are equal; "two", if all entries have
            one of two values; or "empty", if no entry is regular.
        count: number of regular entries.
        rms: root mean square of the regular entries.
        moments: means of functions of the entries divided by `rms`, with their extremes.
        nan: number of NaN entries.
        infinite: number of infinite entries.
        value: the constant, or the fraction of the rarer of the two values.
        ordered: the sorted regular entries of a small array, else None.
    """

    kind: str
    count: int
    rms: float
    moments: NDArray[np.float64]
    nan: int = 0
    infinite: int = 0
    value: float = 0.0
    ordered: NDArray[np.float64] | None = field(default=None, repr=False)

    @property
    def telling(self) -> bool:
        """True if an equal array elsewhere is unlikely to be a coincidence."""
        return self.kind == "numbers" and self.count >= LEAST


def fingerprint(x: NDArray[Any]) -> Fingerprint:
    """Return the fingerprint of an array of real numbers, integers or booleans."""
    flat = x.reshape(-1)
    none = np.zeros(len(_SLOPES))
    if flat.size == 0:
        return Fingerprint("empty", 0, 0.0, none)
    chunks = [flat[i : i + _CHUNK] for i in range(0, flat.size, _CHUNK)]
    nan = infinite = count = outside = 0
    square, least, most = 0.0, np.inf, -np.inf
    for chunk in chunks:
        y = _regular(chunk)
        if y.size < chunk.size:
            outside += chunk.size - y.size
            if chunk.dtype.kind == "f":
                nan += int(np.isnan(chunk).sum())
                infinite += int(np.isinf(chunk).sum())
        if y.size:
            count += y.size
            square += float(y @ y)
            least, most = min(least, float(y.min())), max(most, float(y.max()))
    if count == 0:
        return Fingerprint("empty", 0, 0.0, none, nan, infinite)
    rms = float(np.sqrt(square / count))
    if most - least <= 1e-13 * rms:
        if outside:
            share = count / flat.size
            return Fingerprint("two", count, rms, none, nan, infinite, min(share, 1 - share))
        return Fingerprint("constant", count, rms, none, nan, infinite, least)
    if not outside and all(np.all((c == least) | (c == most)) for c in chunks):
        share = float(np.mean(flat == least))
        return Fingerprint("two", count, rms, none, nan, infinite, min(share, 1 - share))
    sums = np.zeros(4 + len(_FREQUENCIES))
    for chunk in chunks:
        y = _regular(chunk) / rms
        magnitude = np.abs(y)
        squared = y * y
        sums[:4] += y.sum(), magnitude.sum(), squared @ y, squared @ squared
        if count > _WAVES:
            sums[4:] = np.nan
            continue
        for n, (frequency, phase) in enumerate(zip(_FREQUENCIES, _PHASES, strict=True)):
            sums[4 + n] += np.sin(frequency * y + phase).sum()
    means = sums / count
    moments = np.concatenate([means[:4], [least / rms, most / rms], means[4:]])
    ordered = np.sort(_regular(flat)) if count <= _SORTED else None
    return Fingerprint("numbers", count, rms, moments, nan, infinite, 0.0, ordered)


def close(a: Fingerprint, b: Fingerprint, tolerance: float) -> bool:
    """Return True if the values of two arrays are equal up to a tolerance relative to their rms.

    An array that repeats every value of another one is close to it too.
    """
    if a.kind != b.kind:
        return False
    if a.kind == "empty":
        return True
    if a.kind == "two":
        return abs(a.value - b.value) < 1e-12
    if a.kind == "constant":
        return abs(a.value - b.value) <= tolerance * max(abs(a.value), abs(b.value))
    few, many = sorted((a.count, b.count))
    if many % few or abs(a.rms - b.rms) > tolerance * a.rms:
        return False
    if a.ordered is not None and b.ordered is not None:
        x = np.repeat(a.ordered, many // a.count)
        y = np.repeat(b.ordered, many // b.count)
        return bool(np.abs(x - y).max() <= 3 * tolerance * a.rms)
    scale = 1 + np.maximum(np.abs(a.moments), np.abs(b.moments))
    differ = np.abs(a.moments - b.moments) > tolerance * _SLOPES * scale
    return not differ.any()  # NaN, which large arrays have for some moments, differs from nothing


class Fingerprints:
    """Fingerprints among which those of equal arrays are found by their root mean square."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._by_size: list[tuple[float, int]] = []
        self._prints: list[Fingerprint] = []

    def add(self, print_: Fingerprint) -> int:
        """Add a fingerprint, and return its number."""
        insort(self._by_size, (print_.rms, len(self._prints)))
        self._prints.append(print_)
        return len(self._prints) - 1

    def find(self, print_: Fingerprint) -> int | None:
        """Return the number of a fingerprint that is close to another one, or None."""
        reach = 4 * self._tolerance * print_.rms
        at = bisect_left(self._by_size, (print_.rms - reach, -1))
        while at < len(self._by_size) and self._by_size[at][0] <= print_.rms + reach:
            number = self._by_size[at][1]
            if close(self._prints[number], print_, self._tolerance):
                return number
            at += 1
        return None


def _regular(x: NDArray[Any]) -> NDArray[np.float64]:
    """Return the entries that are finite, neither 0 nor huge, in float64."""
    y = x.astype(np.float64, copy=False)
    with np.errstate(invalid="ignore"):
        size = np.abs(y)
        regular = (size < _HUGE) & (size > _TINY)
        return y if regular.all() else y[regular]
