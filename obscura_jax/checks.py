"""Checks of arguments, shared by every module: each returns the value or raises ValueError."""

import math
import operator
from collections.abc import Callable, Collection
from numbers import Real

_LARGEST_SIZE = 2**31 - 1  # every index in this package is an int32


def check_size(name: str, value: object, least: int = 1) -> int:
    """Return `value` as an int; ValueError unless it is an integer from `least` to 2**31 - 1."""
    try:
        size = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        size = least - 1
    if size < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if size > _LARGEST_SIZE:
        raise ValueError(f"{name} must be at most {_LARGEST_SIZE}, got {value!r}")
    return size


def check_sizes(owner: object, *names: str, least: int = 1) -> None:
    """Apply `check_size` to the named attributes of `owner`; each becomes a plain int."""
    for name in names:
        object.__setattr__(owner, name, check_size(name, getattr(owner, name), least))


def check_drop_rate(name: str, value: object) -> float:
    """Return `value` as a float; ValueError unless it is a probability in [0, 1)."""
    return check_number(name, value, lambda rate: 0 <= rate < 1, "in [0, 1)")


def check_eps(name: str, value: object) -> float:
    """Return `value` as a float; ValueError unless it is in (0, 1)."""
    return check_number(name, value, lambda eps: 0 < eps < 1, "in (0, 1)")


def check_number(name: str, value: object, holds: Callable[[float], bool], interval: str) -> float:
    """Return `value` as a float; ValueError unless it is a real number for which `holds` is true.

    `interval` describes these numbers in the message, such as "in (0, 1)" or "above 0".
    """
    if not holds(number := real_number(value)):
        raise ValueError(f"{name} must be a number {interval}, got {value!r}")
    return number


def real_number(value: object) -> float:
    """Return `value` as a float, or NaN, which is in no range, if it is not a real number."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def check_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    """Raise ValueError unless `width` is divisible by `heads`."""
    if width % heads:
        raise ValueError(f"{width_name}={width} is not divisible by {heads_name}={heads}")


def check_choice(name: str, value: object, choices: Collection[str]) -> str:
    """Return `value`; ValueError unless it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return value
