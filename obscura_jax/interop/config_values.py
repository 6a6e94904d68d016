"""Config values of other programs: read in their spellings ("4", 4.0, null), or checked."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np

from obscura_jax.config import GPTConfig


def whole_number(name: str, value: object) -> int | None:
    """Return 4 for 4, 4.0 and "4"; None for null.

    Raises:
        ValueError: for anything else, naming the entry and its type.
    """
    if value is None:
        return None
    number = _number(value)
    if number is None or number % 1:  # the remainder of an infinity or NaN is NaN
        raise _wrong(name, value, "a whole number")
    return int(number)


def check_ln_eps(owner: str, cfg: GPTConfig) -> None:
    """Raise ValueError unless the model has the default eps, which other programs fix.

    `owner` is the program whose layer norm the message names, such as "nanoGPT's".
    """
    if cfg.ln_eps != GPTConfig.ln_eps:
        raise ValueError(
            f"{owner} layer norm has eps {GPTConfig.ln_eps}, but this model's ln_eps is "
            f"{cfg.ln_eps}; keep it in the native form"
        )


def read_values(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return entries of another program's config as those of `GPTConfig`.

    Args:
        config: the other program's config.
        names: its name of an entry -> `GPTConfig`'s. Entries that it lacks, and sizes that are
            null, are left out of the result.

    Raises:
        ValueError: naming an entry of the wrong type.
    """
    found = {
        native: _READERS.get(native, whole_number)(foreign, config[foreign])
        for foreign, native in names.items()
        if foreign in config
    }
    return {name: value for name, value in found.items() if value is not None}


def _rate(name: str, value: object) -> float:
    """Return a drop rate, which only training uses.

    null means that nothing is dropped. A rate of 1, with which a model cannot learn, is read as 0
    too, so that the model can be run.
    """
    if value is None:
        return 0.0
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise _wrong(name, value, "a number from 0 to 1")
    return 0.0 if number == 1 else float(number)


def _real(name: str, value: object) -> Any:
    if (number := _number(value)) is None:
        raise _wrong(name, value, "a number")
    return number


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise _wrong(name, value, "true or false")
    return bool(value)


_READERS: dict[str, Callable[[str, object], Any]] = {
    "drop_rate": _rate,
    "ln_eps": _real,
    "qkv_bias": _flag,
    "tie_weights": _flag,
}


def _number(value: object) -> Any:
    """Return a real number, or the number that a text spells; None for anything else."""
    if isinstance(value, str):
        for kind in (int, float):
            try:
                return kind(value)
            except ValueError:
                continue
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def _wrong(name: str, value: object, wanted: str) -> ValueError:
    shown = f"{value!r:.40}, of type {type(value).__name__}"
    return ValueError(f"the config says {name}={shown}; it must be {wanted}")
