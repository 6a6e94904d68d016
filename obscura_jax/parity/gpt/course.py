"""Comparison of our results with those that the course prints."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDING = 1e-6  # rounding of float32 results near 1


@dataclass(frozen=True, repr=False)
class CourseComparison:
    """Two results and their difference, shown as three lines.

    Attributes:
        ours: our result.
        course: the result that the course prints.
        difference: the largest difference between numbers; 0 or 1 for text and integers.
        allowed: the largest difference that rounding to the printed digits explains.
        decimals: number of decimals shown; None shows every digit, and the difference is relative.
    """

    ours: Any
    course: Any
    difference: float
    allowed: float
    decimals: int | None

    @property
    def equal(self) -> bool:
        """Return whether the course could have printed our result."""
        return self.difference <= self.allowed

    def __repr__(self) -> str:
        lines = [f"ours    {self._shown(self.ours)}", f"course  {self._shown(self.course)}"]
        if not self.allowed:
            return "\n".join([*lines, "the same" if self.equal else "DIFFERENT"])
        relative = " of their size" if self.decimals is None else ""
        size = f"largest difference {self.difference:.1e}{relative}"
        if self.equal:
            return "\n".join([*lines, f"{size}: the same to the last digit printed"])
        return "\n".join([*lines, f"{size}: DIFFERENT, {self.allowed:.1e} is rounding"])

    def _shown(self, value: Any) -> str:
        if not isinstance(value, np.ndarray):
            return str(value)
        digits: dict[str, Any] = {"precision": 9, "suppress_small": False}
        if self.decimals is not None:
            digits = {"precision": self.decimals, "suppress_small": True, "floatmode": "fixed"}
        return np.array2string(value, prefix=" " * 8, max_line_width=100, **digits)


def compare_with_course(ours: Any, course: Any, *, decimals: int | None = 4) -> CourseComparison:
    """Compare a result with the one that the course prints.

    Args:
        ours: numbers of any shape, a text, or a list of texts.
        course: the same result as the course prints it.
        decimals: number of decimals that the course prints; None if it prints every digit of a
            float32, in which case differences are relative. Integers and text must be equal.

    Raises:
        ValueError: if the two differ in shape.
    """
    mine, theirs = np.asarray(ours), np.asarray(course)
    if mine.shape != theirs.shape:
        raise ValueError(f"ours has shape {mine.shape}, but course has {theirs.shape}")
    if theirs.dtype.kind not in "f":
        return CourseComparison(
            mine.tolist(), theirs.tolist(), float((mine != theirs).any()), 0.0, None
        )
    difference = np.abs(mine.astype(np.float64) - theirs)
    if decimals is None:
        size = float((difference / np.abs(theirs)).max())
        return CourseComparison(mine, theirs, size, _ROUNDING, None)
    allowed = 0.5 * 10.0**-decimals + _ROUNDING
    return CourseComparison(mine, theirs, float(difference.max()), allowed, decimals)
