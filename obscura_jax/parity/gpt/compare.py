"""Decide whether two results are equal up to rounding, from runs in float32 and in float64.

From float32 to float64 rounding errors shrink by 2**29; a bug does not shrink. So the difference of
two frameworks in float64 is compared with the rounding that is expected there: the difference
between each framework's own float32 and float64 results, divided by 2**29.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
RATIO = 2.0**29  # epsilon of float32 / epsilon of float64
# The factor by which rounding may exceed its estimate. Measured: at most 5.7 in 36 reports on small
# models with random parameters, and 2.8 for the 124M model. The smallest fault in the tests: 3e7.
MARGIN = 64.0
_OF_CONSTANTS = 4.0  # the factor by which constants may exceed the rounding of a float32 run
_FLOOR = 16 * float(np.finfo(np.float64).eps)  # rounding where float32 happens to be exact


class Outputs(NamedTuple):
    """The same tensors, by name, from both frameworks."""

    ours: Arrays
    theirs: Arrays


class PrecisionPair(NamedTuple):
    """The tensors of both frameworks in both precisions."""

    float32: Outputs
    float64: Outputs


@dataclass(frozen=True)
class Finding:
    """The difference of the frameworks in one tensor, relative to its largest entry.

    Attributes:
        name: the tensor.
        float32: the difference in float32; NaN if the tensors cannot be compared.
        float64: the difference in float64.
        expected64: the float64 difference that rounding explains: the larger of the two frameworks'
            float32 errors, divided by 2**29.
        equal: whether the difference is rounding.
        note: a remark, or "".
        prompt: name of the input, the one with the largest excess if there were several.
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
        """The float64 difference as a multiple of the expected rounding, for sorting."""
        if np.isnan(self.float64):
            return float("inf")
        return self.float64 / (self.expected64 + _FLOOR)


def findings(runs: PrecisionPair, prompt: str = "") -> list[Finding]:
    """Return one finding per tensor that both frameworks have, in our order.

    The scale of a tensor is at least 1e-6 of the largest entry of all tensors, because some consist
    of rounding errors only: the true gradient of the keys' bias is 0.
    """
    ours, theirs = runs.float64
    names = [name for name in ours if name in theirs]
    largest = max((_largest(theirs[name]) for name in names), default=0.0)
    return [_finding(name, runs, largest * 1e-6, prompt) for name in names]


def worst(rows: list[Finding]) -> list[Finding]:
    """Return the finding with the largest excess for each name, in order of first appearance."""
    found: dict[str, Finding] = {}
    for row in rows:
        if row.name not in found or row.excess > found[row.name].excess:
            found[row.name] = row
    return list(found.values())


def allow_float32(rows: Iterable[Finding]) -> list[Finding]:
    """Count differences as equal that are as small as rounding to float32, and note it.

    A constant that PyTorch rounds to float32 leaves differences of this size in float64.
    """
    return [
        replace(row, equal=True, note="as much as float32 constants explain")
        if not row.equal and row.float64 <= _OF_CONSTANTS * RATIO * row.expected64
        else row
        for row in rows
    ]


def _finding(name: str, runs: PrecisionPair, least_scale: float, prompt: str) -> Finding:
    ours32, theirs32, ours64, theirs64 = (side[name] for outputs in runs for side in outputs)
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

    def difference(a: NDArray[Any], b: NDArray[Any]) -> float:
        return _largest(np.subtract(a, b, dtype=np.float64)) / scale

    errors32 = difference(ours32, ours64), difference(theirs32, theirs64)
    float32, float64 = difference(ours32, theirs32), difference(ours64, theirs64)
    expected = max(errors32) / RATIO
    equal = float64 <= MARGIN * (expected + _FLOOR)
    return Finding(name, float32, float64, expected, equal, _digits(*errors32), prompt)


def _digits(ours: float, theirs: float) -> str:
    """Return a note on the framework whose float32 is much less precise, or "" if none is."""
    least = float(np.finfo(np.float32).eps)
    for whose, one, other in (("ours", ours, theirs), ("theirs", theirs, ours)):
        if 1e-3 > one > 300 * max(other, least):
            return f"{whose} loses {np.log10(one / max(other, least)):.0f} digits more in float32"
    return ""


def _largest(x: NDArray[Any]) -> float:
    return float(np.abs(x).max(initial=0.0))
