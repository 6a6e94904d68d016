"""The number that a constant of low precision means.

A program that writes 1e-6 or sqrt(2 / pi) holds the nearest float32, which is wrong by up to 6e-8
in float64. Both programs mean the number itself.
"""

import math
from functools import cache
from typing import Any

import numpy as np

_LONG = 7  # significant digits: a shorter decimal was written by a person
_DYADIC = 1 << 12  # a number with so few binary digits, such as 1 / 32768, is exact already
_LARGEST = 1 << 14  # the roots of integers up to this one are recognized


def exact_value(x: Any) -> Any:
    """Return the float64 number that a scalar of low precision means.

    It is the root of an integer, its inverse, or another number with a name, if that rounds to the
    scalar in float32 and no short decimal does; the scalar itself, if it has few binary digits;
    else the shortest decimal. Arrays with axes, integers and float64 are returned unchanged.
    """
    array = np.asarray(x)
    low = array.dtype.name in ("float32", "float16", "bfloat16")
    if array.ndim or not low or not np.isfinite(array):
        return x
    scalar = float(array)
    with np.errstate(over="ignore"):
        for digits in range(1, 10):
            decimal = float(f"{scalar:.{digits - 1}e}")
            if np.asarray(decimal, array.dtype) == array:
                break
    if digits >= _LONG and (known := _known().get(abs(scalar))) is not None:
        return np.float64(math.copysign(known, scalar))
    if digits >= _LONG and (math.frexp(scalar)[0] * _DYADIC).is_integer():
        return np.float64(scalar)
    return np.float64(decimal)


@cache
def _known() -> dict[float, float]:
    """Return exact numbers by the float32 nearest to them."""
    exact = [math.sqrt(n) for n in range(2, _LARGEST)]
    exact += [1 / root for root in exact]
    exact += [math.pi * k / n for k in (1, 2, 4) for n in (1, 2, 3, 4, 6, 8, 180)]
    exact += [1 / n for n in range(3, _LARGEST)]
    exact += [
        math.sqrt(2 / math.pi),
        math.sqrt(math.pi / 2),
        1 / math.pi,
        2 / math.pi,
        2 / math.sqrt(math.pi),
        math.sqrt(math.pi),
        math.sqrt(2 * math.pi),
        0.5 * math.log(2 * math.pi),
        math.log(2),
        1 / math.log(2),
        math.log(10),
        math.log(10000),
        math.e,
    ]
    return {float(np.float32(x)): x for x in reversed(exact)}
