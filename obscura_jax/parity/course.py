"""What the course prints, beside what comes out here."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_ROUNDING = 1e-6  # float32's own, of numbers of about 1


@dataclass(frozen=True, repr=False)
class Beside:
    """Two results and their difference; shown as three lines.

    Attributes:
        ours: what was computed here.
        course: what the course prints.
        difference: the largest one of numbers; 0 or 1 for text and whole numbers.
        allowed: how large a difference the digits printed explain.
        decimals: how many are shown; None shows every digit, and the difference is relative.
    """

    ours: Any
    course: Any
    difference: float
    allowed: float
    decimals: int | None

    @property
    def equal(self) -> bool:
        """Whether the course could have printed ours."""
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


def beside(ours: Any, course: Any, *, decimals: int | None = 4) -> Beside:
    """Put a result beside the figure that the course prints.

    Args:
        ours: numbers of any shape, or text, or a list of texts.
        course: the same as the course prints it.
        decimals: how many the course prints; None when it prints every digit of a float32, which
            are then compared relative to their size. Whole numbers and text must be equal.

    Raises:
        ValueError: when the two have not the same shape.
    """
    mine, theirs = np.asarray(ours), np.asarray(course)
    if mine.shape != theirs.shape:
        raise ValueError(f"ours has shape {mine.shape}, the course's figure {theirs.shape}")
    if theirs.dtype.kind not in "f":
        return Beside(mine.tolist(), theirs.tolist(), float((mine != theirs).any()), 0.0, None)
    apart = np.abs(mine.astype(np.float64) - theirs)
    if decimals is None:
        size = float((apart / np.abs(theirs)).max())
        return Beside(mine, theirs, size, _ROUNDING, None)
    allowed = 0.5 * 10.0**-decimals + _ROUNDING
    return Beside(mine, theirs, float(apart.max()), allowed, decimals)
