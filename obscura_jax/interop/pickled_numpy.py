"""Read NumPy's numbers in a pickle without NumPy's own unpickling.

The metrics and sizes in a checkpoint are often NumPy scalars, and the state of its random
generators has arrays. NumPy's functions trust the memory layout that a pickle describes. torch
calls these stand-ins instead, which accept plain numbers and turn everything else into `Unread`.
"""

from typing import Any

import numpy as np

_NUMBERS = "?bhilqBHILQefdg"  # NumPy's codes of plain types


class Unread:
    """A value that no config has, such as an array; its content is ignored."""

    def __init__(self, *_: object) -> None:
        """Accept anything."""

    def __setstate__(self, state: object) -> None:
        """Accept anything."""


class PickledType:
    """A `numpy.dtype` in a pickle."""

    def __init__(self, code: object = None, *_: object) -> None:
        """Store NumPy's name of the type, such as "f8"."""
        self._code, self._swapped = code, False

    def __setstate__(self, state: object) -> None:
        """Store the byte order; the rest of the state is for types that are not plain."""
        self._swapped = isinstance(state, tuple) and state[1:2] == (">",)

    def plain(self) -> np.dtype[Any] | None:
        """Return the type if it is that of a plain number, else None."""
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


# Each with its name in a pickle, by NumPy 2 and by NumPy 1.
STAND_INS: list[tuple[Any, str]] = [
    (PickledType, "numpy.dtype"),
    (Unread, "numpy.ndarray"),
    *(
        (stand_in, f"{module}.{name}")
        for module in ("numpy._core.multiarray", "numpy.core.multiarray")
        for stand_in, name in ((scalar, "scalar"), (Unread, "_reconstruct"))
    ),
]
