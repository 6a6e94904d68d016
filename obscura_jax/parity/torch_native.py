"""Run a PyTorch program in its own precision, and check that it always returns the same."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.program import NotComparableError, TorchProgram, arrays_in, picked
from obscura_jax.parity.side_errors import running
from obscura_jax.parity.torch_lift import is_low, modules_of


def native_outputs(program: TorchProgram) -> dict[str, NDArray[Any]]:
    """Return the outputs in the program's own precision, from the first of two runs.

    Raises:
        NotComparableError: if it returns no tensors, or other ones in the second run, or its
            tensors have no values.
    """
    import torch

    _check_devices(program)
    before = torch.get_rng_state()
    first, precise = _outputs(program)
    drew = not torch.equal(before, torch.get_rng_state())
    second, _ = _outputs(program)
    threads = 1e-12 if precise else 1e-5  # threads may sum in another order
    if first.keys() != second.keys() or not all(
        _same(x, second[name], threads) for name, x in first.items()
    ):
        why = (
            "it draws random numbers; call .eval() on the module, or set dropout to 0"
            if drew
            else "it keeps state from one call to the next, or draws random numbers without PyTorch"
        )
        raise NotComparableError(
            f"the PyTorch side returns different results in two runs on the same input: {why}"
        )
    return first


def _check_devices(program: TorchProgram) -> None:
    for module in modules_of(program.call):
        for name, x in (*module.named_parameters(), *module.named_buffers()):
            if x.is_meta:
                raise NotComparableError(
                    f"the PyTorch side has no values: {name} is on the device meta; build the "
                    "module on the CPU, and load its weights"
                )


def _outputs(program: TorchProgram) -> tuple[dict[str, NDArray[Any]], bool]:
    """Return the outputs, and whether all are float64 or integers."""
    import torch

    with torch.no_grad(), running("PyTorch"):
        result = picked(program.call(*program.args, **program.kwargs), program.out, "PyTorch")
    tensors = arrays_in(result, is_tensor)
    if not tensors:
        raise NotComparableError(
            f"the PyTorch side returns no tensors but {type(result).__name__}; return a tensor, or "
            "pick one with out="
        )
    if any(x.is_meta for x in tensors.values()):
        raise NotComparableError(
            "the PyTorch side returns tensors on the device meta, which have no values; give it "
            "inputs on the CPU"
        )
    precise = not any(is_low(x.dtype) for x in tensors.values())
    return {name: numpy_of(x).copy() for name, x in tensors.items()}, precise


def _same(a: NDArray[Any], b: NDArray[Any], tolerance: float) -> bool:
    if a.shape != b.shape:
        return False
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    a, b = a[finite].astype(np.float64), b[finite].astype(np.float64)
    scale = float(np.abs(a).max(initial=0.0)) or 1.0
    return bool(np.abs(a - b).max(initial=0.0) <= tolerance * scale)


def numpy_of(tensor: Any) -> NDArray[Any]:
    """Return a tensor as an array; complex numbers become pairs, low precision float64."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point():
        tensor = tensor.double()
    return tensor.resolve_neg().numpy()


def is_tensor(x: Any) -> bool:
    """Return True for a tensor."""
    import torch

    return isinstance(x, torch.Tensor)
