"""Parts of every JSON report: the versions of packages, and numbers that JSON can hold."""

import json
import math
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that computed the report."""
    found = {"python": platform.python_version()}
    for name in ("obscura-jax", "jax", "flax", "numpy", "torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def dumped(content: Mapping[str, Any]) -> str:
    """Return a report as JSON, with a newline at the end; numbers that are not finite are null."""
    return json.dumps(_finite(content), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
