"""NumPy's numbers in a pickle, read without NumPy's own unpickling.

A checkpoint's metrics and sizes are often NumPy scalars, and its state of random generators has
arrays. NumPy's functions trust what a pickle tells them about memory, so these stand-ins, which
torch calls in their place, accept plain numbers, and make everything else an `Unread`.
"""

from typing import Any

import numpy as np

_NUMBERS = "?bhilqBHILQefdg"  # NumPy's codes of plain types


class Unread:
    """A value that no config has, such as an array: whatever it holds is left unread."""

    def __init__(self, *_: object) -> None:
        """Accept anything."""

    def __setstate__(self, state: object) -> None:
        """Accept anything."""


class PickledType:
    """A `numpy.dtype` in a pickle."""

    def __init__(self, code: object = None, *_: object) -> None:
        """Keep NumPy's name of the type, such as "f8"."""
        self._code, self._swapped = code, False

    def __setstate__(self, state: object) -> None:
        """Keep the order of its bytes; the rest describes types that are not plain."""
        self._swapped = isinstance(state, tuple) and state[1:2] == (">",)

    def plain(self) -> np.dtype[Any] | None:
        """Return the type if it is one of plain numbers."""
        if not isinstance(self._code, str) or len(self._code) > 3:
            return None
        try:
            found = np.dtype(self._code)
        except (TypeError, ValueError):
            return None
        return found.newbyteorder(">" if self._swapped else "<") if found.char in _NUMBERS else None


def scalar(kind: object = None, data: object = None, *_: object) -> Any:
    """Return the number that `numpy._core.multiarray.scalar` would make."""
    found = kind.plain() if isinstance(kind, PickledType) else None
    if found is None or not isinstance(data, bytes) or len(data) != found.itemsize:
        return Unread()
    return np.frombuffer(data, found)[0]


# Each with the name that a pickle has for it: of NumPy 2, and of NumPy 1 before it.
STAND_INS: list[tuple[Any, str]] = [
    (PickledType, "numpy.dtype"),
    (Unread, "numpy.ndarray"),
    *(
        (stand_in, f"{module}.{name}")
        for module in ("numpy._core.multiarray", "numpy.core.multiarray")
        for stand_in, name in ((scalar, "scalar"), (Unread, "_reconstruct"))
    ),
]
