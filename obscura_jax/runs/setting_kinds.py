"""Descriptions of settings: their kinds of values, and the entry for one setting."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from obscura_jax.arguments import positive_int, seed_value
from obscura_jax.checks import check_choice, check_drop_rate, check_eps, check_number, check_size


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        check: takes the name of a setting and a value; returns the value, normalized, or raises
            ValueError.
        parse: reads a value from a word of the command line.
        choices: all values, if there are few.
    """

    check: Callable[[str, Any], Any]
    parse: Callable[[str], Any] = str
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Setting:
    """The description of a setting, in the metadata of its field.

    Attributes:
        group: the heading under which the help lists the option.
        kind: the kind of its values.
        help: a description that can be read alone.
        metavar: the name of the value in the help.
        old: the earlier name, still read in settings.json and on the command line.
        later: whether settings.json of earlier runs lacks it; its default is then meant.
        changeable: whether a resumed run may use another value; only rounding depends on it.
    """

    group: str
    kind: Kind
    help: str
    metavar: str | None = None
    old: str | None = None
    changeable: bool = False
    later: bool = False


def about(group: str, kind: Kind, help: str, *args: Any, **more: Any) -> dict[str, Setting]:
    """Return the metadata of a field: a `Setting` with these attributes."""
    return {"setting": Setting(group, kind, help, *args, **more)}


def _check_path(name: str, value: object) -> str:
    if not isinstance(value, str | Path):
        raise ValueError(f"{name} must be a path, got {value!r}")
    return str(Path(value).absolute())


def _check_paths(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        raise ValueError(f"{name} must be a list of paths, got {value!r}")
    return tuple(_check_path(f"every entry of {name}", path) for path in value)


def _number(holds: Callable[[float], bool], interval: str) -> Kind:
    return Kind(partial(check_number, holds=holds, interval=interval), float)


def one_of(*choices: str) -> Kind:
    """Return the kind of a choice among words."""
    return Kind(partial(check_choice, choices=choices), choices=choices)


PATH, PATHS = Kind(_check_path), Kind(_check_paths)
SIZE = Kind(check_size, positive_int)
SEED = Kind(partial(check_size, least=0), seed_value)
RATE, PROPER_FRACTION = Kind(check_drop_rate, float), Kind(check_eps, float)
FRACTION = _number(lambda x: 0 <= x <= 1, "in [0, 1]")
POSITIVE = _number(lambda x: 0 < x < math.inf, "above 0")
NONNEGATIVE = _number(lambda x: 0 <= x < math.inf, "at least 0")
