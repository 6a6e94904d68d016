"""Compare the gradients of a pair of programs of `tests/pairs` with planted faults."""

from contextlib import ExitStack
from types import ModuleType

import jax

from obscura_jax.parity.diverge import find_divergences
from obscura_jax.parity.findings import Finding
from obscura_jax.parity.gradients import GradientResult, compare_gradients
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.torch_trace import trace_torch
from tests.pairs.gradient_faults import GradientFault
from tests.support.planted import built, changed


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
        torch_side = stack.enter_context(changed(f"{fault.pair}_torch", fault.torch))
        jax_side = stack.enter_context(changed(f"{fault.pair}_jax", fault.jax))
        return gradients_of(torch_side, jax_side, seed)


def gradients_of(torch_side: ModuleType, jax_side: ModuleType, seed: int = 0) -> GradientResult:
    """Return the comparison of the gradients of a pair."""
    with jax.numpy_rank_promotion("allow"):
        return gradients(*built(torch_side, jax_side, seed))


def names_the_lines(finding: Finding, fault: GradientFault) -> tuple[bool, bool]:
    """Return whether a finding has the right place in PyTorch and in JAX."""
    places = ((finding.torch, fault.torch_lines), (finding.jax, fault.jax_lines))
    return tuple(
        place is not None and any(line in place.code for line in lines) for place, lines in places
    )
