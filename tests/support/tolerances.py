"""Measured and allowed differences between the two frameworks, per quantity and number type.

Differences are relative to the largest entry of PyTorch's array. A tolerance is about four times
the largest error measured on AVX-512 with twelve small models with random parameters and prompts.
Tests of fixed models use this table; the verdict of `obscura parity` does not.
"""

from typing import NamedTuple


class Tolerance(NamedTuple):
    """The largest measured difference and the largest allowed one."""

    measured: float
    allowed: float


TOLERANCES: dict[tuple[str, str], Tolerance] = {
    ("intermediates and logits", "float64"): Tolerance(2.1e-15, 8e-15),
    ("intermediates and logits", "float32"): Tolerance(1.1e-6, 4e-6),
    ("logits", "bfloat16"): Tolerance(1.3e-2, 5e-2),
    ("gradients", "float64"): Tolerance(3.3e-14, 1.3e-13),
    ("gradients", "float32"): Tolerance(2.2e-5, 9e-5),
    ("optimizer state after 3 steps", "float64"): Tolerance(1.6e-14, 6e-14),
    ("optimizer state after 3 steps", "float32"): Tolerance(1.1e-5, 4.4e-5),
    ("losses of 100 steps", "float64"): Tolerance(4.4e-16, 2e-15),
    ("losses of 100 steps", "float32"): Tolerance(1.1e-6, 4.4e-6),
}


def as_markdown() -> str:
    """Return the table of docs/explain/numerics.md."""
    rows = [
        f"| {quantity} | {dtype} | {b.measured:.1e} | {b.allowed:.1e} |"
        for (quantity, dtype), b in TOLERANCES.items()
    ]
    return "\n".join(["| | | measured | allowed |", "|---|---|---|---|", *rows])
