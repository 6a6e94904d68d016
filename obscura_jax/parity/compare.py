"""Are two results one up to rounding? Each is computed in float32 and in float64, and that tells.

Rounding shrinks with the precision: by 2**29 from float32 to float64. A bug does not. So the
difference of two frameworks in float64 is held against what rounding explains: how far each
framework's own float32 result lies from its float64 one, over 2**29.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
RATIO = 2.0**29  # of the two precisions
# How far beyond its estimate rounding may lie. Measured: at most 5.7 times, in 36 reports on small
# models with random parameters (the 124M model: 2.8); the smallest fault of the tests is at 3e7.
MARGIN = 64.0
_FLOOR = 16 * float(np.finfo(np.float64).eps)  # rounding where float32 happens to be exact


class PrecisionPair(NamedTuple):
    """The same tensors by both frameworks in both precisions, by name."""

    ours32: Arrays
    theirs32: Arrays
    ours64: Arrays
    theirs64: Arrays


@dataclass(frozen=True)
class Finding:
    """How far apart the frameworks are in one tensor, relative to its largest entry.

    Attributes:
        name: the tensor.
        float32: the difference in float32.
        float64: the difference in float64.
        expected64: what rounding explains of it: the larger float32 error of the two over 2**29.
        equal: whether the difference is rounding.
        note: what else there is to say, or "".
        prompt: for which input this was, of several the one that is worst.
    """

    name: str
    float32: float
    float64: float
    expected64: float
    equal: bool
    note: str = ""
    prompt: str = ""

    @property
    def excess(self) -> float:
        """The difference in float64 as a multiple of what rounding explains; orders findings."""
        if np.isnan(self.float64):
            return float("inf")
        return self.float64 / (self.expected64 + _FLOOR)


def findings(runs: PrecisionPair, prompt: str = "") -> list[Finding]:
    """One for each tensor that both frameworks have, in our order.

    A tensor that is 0 but for rounding, as the gradient of the keys' bias is, is measured against
    the largest of all.
    """
    names = [name for name in runs.ours64 if name in runs.theirs64]
    largest = max((_largest(runs.theirs64[name]) for name in names), default=0.0)
    return [_finding(name, runs, largest * 1e-6, prompt) for name in names]


def worst(rows: list[Finding]) -> list[Finding]:
    """For each name the finding that exceeds rounding most, in the order of first appearance."""
    found: dict[str, Finding] = {}
    for row in rows:
        if row.name not in found or row.excess > found[row.name].excess:
            found[row.name] = row
    return list(found.values())


def _finding(name: str, runs: PrecisionPair, least_scale: float, prompt: str) -> Finding:
    ours32, theirs32, ours64, theirs64 = (side[name] for side in runs)
    nan = float("nan")
    if theirs64.shape[-ours64.ndim :] == ours64.shape and theirs64.size == ours64.size:
        theirs32, theirs64 = (x.reshape(ours64.shape) for x in (theirs32, theirs64))
    if ours64.shape != theirs64.shape:
        note = f"shape {theirs64.shape}, ours {ours64.shape}"
        return Finding(name, nan, nan, nan, False, note, prompt)
    for whose, dtype, x in (
        *(("ours", "float64", ours64), ("theirs", "float64", theirs64)),
        *(("ours", "float32", ours32), ("theirs", "float32", theirs32)),
    ):
        if not np.isfinite(x).all():
            note = f"NaN or infinite in {whose}, in {dtype}"
            return Finding(name, nan, nan, nan, False, note, prompt)
    scale = max(_largest(theirs64), least_scale) or 1.0

    def apart(a: NDArray[Any], b: NDArray[Any]) -> float:
        return _largest(np.subtract(a, b, dtype=np.float64)) / scale

    own32 = apart(ours32, ours64), apart(theirs32, theirs64)
    float64, expected = apart(ours64, theirs64), max(own32) / RATIO
    equal = float64 <= MARGIN * (expected + _FLOOR)
    return Finding(name, apart(ours32, theirs32), float64, expected, equal, _digits(*own32), prompt)


def _digits(ours: float, theirs: float) -> str:
    """A word on a framework whose float32 is much worse than the other's, of what is not 0."""
    least = float(np.finfo(np.float32).eps)
    for whose, one, other in (("ours", ours, theirs), ("theirs", theirs, ours)):
        if 1e-3 > one > 300 * max(other, least):
            return f"{whose} loses {np.log10(one / max(other, least)):.0f} digits more in float32"
    return ""


def _largest(x: NDArray[Any]) -> float:
    return float(np.abs(x).max(initial=0.0))
