"""Numbers that a PyTorch program rounds to float32 even where it computes in float64.

`torch.tensor(2 / torch.pi)` is a float32 tensor whatever the type of the model. In float32 that is
no mistake; in float64 it moves what depends on it by some 1e-8, which would look like one. So in
the float64 runs such numbers keep all their digits.

This hides nothing but the rounding of numbers. Only tensors without axes, made of nothing but
numbers, get their digits back. A tensor without axes never decides the type of a result, so
whatever else the program computes in float32 it still does; and a value that is wrong by more than
float32's rounding is left as it is.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from obscura_jax.parity import capture

_ROUNDING = float(np.finfo(np.float32).eps)  # relative; one operation on numbers rounds by half
_MARK = "_made_of_numbers"  # an attribute of the tensors that are


class Constants:
    """The float32 constants of a program, collected while it runs in float64.

    Attributes:
        found: rounded value and exact value, by the place in the program.
        as_written: leave them rounded, and collect none.
    """

    def __init__(self, *, as_written: bool = False) -> None:
        self.found: dict[str, tuple[float, float]] = {}
        self.as_written = as_written

    @contextmanager
    def exact(self, dtype: str) -> Iterator[None]:
        """Context manager: in a float64 run, constants have float64's digits."""
        if self.as_written or dtype != "float64":
            yield
            return
        with _mode(self.found):
            yield

    def note(self, moved: float) -> str:
        """Return a sentence on the constants, which move the logits by `moved`."""
        place, (rounded, exact) = next(iter(self.found.items()))
        more = f", and {len(self.found) - 1} more like it" if len(self.found) > 1 else ""
        return (
            f"{place} rounds a constant to float32, {exact:.10g} to {rounded:.10g}{more}: that "
            f"alone moves the float64 logits by {moved:.1e} and is no mistake, so the float64 runs "
            "here use all its digits; in float64 your program itself is no closer than that"
        )


def _mode(found: dict[str, tuple[float, float]]) -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    def constant(x: Any) -> bool:
        return x.ndim == 0 and (hasattr(x, _MARK) or not x.is_floating_point())

    def wide(x: Any) -> Any:
        return torch.float64 if x is torch.float32 else x

    class Exact(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            out = func(*args, **kwargs)
            if not isinstance(out, torch.Tensor) or out.ndim or not out.is_floating_point():
                return out
            given = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            if out.device.type != "cpu" or not all(map(constant, given)):
                return out
            if out.dtype == torch.float32:
                called = torch.Tensor.double if func is torch.Tensor.float else func
                usual = torch.get_default_dtype()
                torch.set_default_dtype(torch.float64)
                try:
                    exact = called(*map(wide, args), **{k: wide(v) for k, v in kwargs.items()})
                finally:
                    torch.set_default_dtype(usual)
                a, b = float(out), float(exact)
                if exact.dtype != torch.float64 or not abs(a - b) <= _ROUNDING * abs(b):
                    return out
                if a != b:
                    found.setdefault(_place(sys._getframe(1)), (a, b))
                out = exact
            setattr(out, _MARK, True)
            return out

    return Exact()


def _place(frame: FrameType | None) -> str:
    """Return the function, file and line of the innermost frame that is the program's own."""
    import torch

    others = (str(Path(torch.__file__).parent), capture.__file__)  # which may call it in between
    while frame is not None and frame.f_code.co_filename.startswith(others):
        frame = frame.f_back
    if frame is None:
        return "PyTorch"
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return f"{name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
