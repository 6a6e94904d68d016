"""Compare the gradients of a pair of programs of `tests/pairs` with planted faults."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import jax
import numpy as np
import torch

from obscura_jax.parity.diverge import find_divergences
from obscura_jax.parity.findings import Finding
from obscura_jax.parity.gradients import GradientResult, compare_gradients
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import JaxProgram, TorchProgram, jax_program, torch_program
from obscura_jax.parity.torch_trace import trace_torch
from tests.pairs.gradient_faults import GradientFault
from tests.support.planted import FOLDER


def gradients(torch_side: TorchProgram, jax_side: JaxProgram) -> GradientResult:
    """Return the comparison of the gradients of two programs with equal outputs."""
    theirs, ours = trace_torch(torch_side), trace_jax(jax_side)
    found = find_divergences(theirs, ours)
    assert all(finding.kind == "constant" for finding in found.findings)
    assert found.complete
    return compare_gradients(torch_side, jax_side, theirs, found.jax, found.alignment)


def gradients_with(fault: GradientFault, seed: int = 0) -> GradientResult:
    """Return the comparison of the gradients of a pair with a planted fault."""
    with ExitStack() as stack:
        torch_side = stack.enter_context(_changed(f"{fault.pair}_torch", fault.torch))
        jax_side = stack.enter_context(_changed(f"{fault.pair}_jax", fault.jax))
        return gradients_of(torch_side, jax_side, seed)


def gradients_of(torch_side: ModuleType, jax_side: ModuleType, seed: int = 0) -> GradientResult:
    """Return the comparison of the gradients of a pair."""
    with jax.numpy_rank_promotion("allow"):
        module, inputs = torch_side.build(seed)
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        given = [x.numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in inputs]
        call, args = jax_side.build(state, given)
        return gradients(torch_program(module, *inputs), jax_program(call, *args))


def names_the_lines(finding: Finding, fault: GradientFault) -> tuple[bool, bool]:
    """Return whether a finding has the right place in PyTorch and in JAX."""
    places = ((finding.torch, fault.torch_lines), (finding.jax, fault.jax_lines))
    return tuple(
        place is not None and any(line in place.code for line in lines) for place, lines in places
    )


@contextmanager
def _changed(name: str, changes: tuple[tuple[str, str], ...]) -> Iterator[ModuleType]:
    """Context manager: a module of a pair with changes."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{name}: the text is not there once: {old}"
        text = text.replace(old, new)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"planted_{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            del sys.modules[spec.name]
