"""Constants that a PyTorch program rounds to float32 even when it computes in float64.

`torch.tensor(2 / torch.pi)` is a float32 tensor whatever the type of the model. That is correct in
float32, but in float64 it changes results by about 1e-8, which would look like a mistake. So in the
float64 runs these constants have all their digits.

This hides only the rounding of constants. It applies to tensors without axes that are computed from
Python numbers alone. A tensor without axes never determines the type of a result, so everything
else that the program computes in float32 stays in float32. A value that is wrong by more than
float32's rounding is not changed.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from obscura_jax.parity.gpt import torch_capture

# Largest relative error of a constant: each operation rounds by half of float32's epsilon.
_ROUNDING = 4 * float(np.finfo(np.float32).eps)
_TWIN = "_as_written"  # an attribute of an exact constant: the rounded one


class Constants:
    """The float32 constants of a program, collected while it runs in float64.

    Attributes:
        found: rounded and exact value of each constant, by its place in the program.
        as_written: whether constants stay rounded and are not collected.
    """

    def __init__(self, *, as_written: bool = False) -> None:
        self.found: dict[str, tuple[float, float]] = {}
        self.as_written = as_written

    @contextmanager
    def exact(self, dtype: str) -> Iterator[None]:
        """Context manager: give constants all digits of float64 if `dtype` is "float64"."""
        if self.as_written or dtype != "float64":
            yield
            return
        with _mode(self.found):
            yield

    def note(self, difference: float) -> str:
        """Return a sentence on the constants, which change the logits by `difference`."""
        place, (rounded, exact) = next(iter(self.found.items()))
        more = f", and {len(self.found) - 1} more like it" if len(self.found) > 1 else ""
        return (
            f"{place} rounds a constant to float32, {exact:.10g} to {rounded:.10g}{more}; this "
            f"changes the float64 logits by {difference:.1e} and is not a mistake, so the float64 "
            "runs use all its digits, but your program itself is no more precise than that"
        )


def _mode(found: dict[str, tuple[float, float]]) -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    def constant(x: Any) -> bool:
        return x.ndim == 0 and (hasattr(x, _TWIN) or not x.is_floating_point())

    def exactly(func: Any, args: Any, kwargs: Any) -> Any:
        """Call `func` with float64 wherever it would take float32."""
        func = torch.Tensor.double if func is torch.Tensor.float else func
        args, kwargs = jax.tree.map(
            lambda x: torch.float64 if x is torch.float32 else x, (args, kwargs)
        )
        usual = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return func(*args, **kwargs)
        finally:
            torch.set_default_dtype(usual)

    class Exact(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            given = [x for x in jax.tree.leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
            if not all(map(constant, given)):
                return func(*args, **kwargs)
            own, more = jax.tree.map(lambda x: getattr(x, _TWIN, x), (args, kwargs))
            rounded = func(*own, **more)  # the program's own result
            is_tensor = isinstance(rounded, torch.Tensor)
            if is_tensor and (rounded.ndim or rounded.device.type != "cpu"):
                return rounded
            if not is_tensor or rounded.dtype != torch.float32:
                return func(*args, **kwargs) if given else rounded
            exact = exactly(func, args, kwargs)
            a, b = float(rounded), float(exact)
            if exact.dtype != torch.float64 or not abs(a - b) <= _ROUNDING * abs(b):
                return rounded
            if a != b:
                found.setdefault(_place(sys._getframe(1)), (a, b))
            setattr(exact, _TWIN, rounded)
            return exact

    return Exact()


def _place(frame: FrameType | None) -> str:
    """Return the function, file and line of the innermost frame in the program itself."""
    import torch

    others = (str(Path(torch.__file__).parent), torch_capture.__file__)  # callers that are skipped
    while frame is not None and frame.f_code.co_filename.startswith(others):
        frame = frame.f_back
    if frame is None:
        return "PyTorch"
    name = getattr(frame.f_code, "co_qualname", frame.f_code.co_name)
    return f"{name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
