"""Compare the gradients of two programs, and find where their backward passes part.

The gradients are those of the sum of all outputs, each multiplied by fixed random factors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Alignment, align
from obscura_jax.parity.backward import Backward, NoGradientsError, cotangent
from obscura_jax.parity.diverge import Divergence
from obscura_jax.parity.findings import Finding, Gradient
from obscura_jax.parity.gradient_findings import find_gradient_divergences
from obscura_jax.parity.gradient_layout import in_one_order
from obscura_jax.parity.jax_backward import jax_backward
from obscura_jax.parity.jax_trace import JaxTrace
from obscura_jax.parity.parameter_twins import Twins, match_parameters
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.relation import OUTPUT, TOLERANCE, rms
from obscura_jax.parity.torch_backward import torch_backward
from obscura_jax.parity.trace import Trace

# A gradient far below the others, such as that of the bias of an attention's keys, is 0 but for
# rounding. Its differences are relative to this share of the median gradient.
_SMALL = 1e-4
_LARGEST = 50_000_000  # parameters of a model whose gradients are compared


@dataclass(frozen=True)
class GradientResult:
    """The comparison of two backward passes.

    Attributes:
        gradients: one entry for each parameter and input that both programs have.
        findings: places at which the backward passes part.
        notes: remarks, one sentence each.
    """

    gradients: tuple[Gradient, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def equal(self) -> bool:
        """True if no gradient differs."""
        return all(gradient.equal for gradient in self.gradients)


@dataclass
class _Compared:
    """The gradients of twins in one order.

    Attributes:
        twins: the parameters.
        theirs: gradient of the PyTorch side.
        ours: gradient of the JAX side.
    """

    twins: Twins
    theirs: NDArray[Any]
    ours: NDArray[Any]
    rms: float = field(init=False)

    def __post_init__(self) -> None:
        self.rms = max(rms(self.theirs), rms(self.ours))


def gradients_if_possible(
    torch: TorchProgram | Trace, jax: JaxProgram | Trace, torch_trace: Trace, found: Divergence
) -> GradientResult:
    """Return the comparison of the gradients of two programs whose outputs are equal.

    Recordings have no gradients, and those of large models would take too long.

    Args:
        torch: the PyTorch side of a comparison.
        jax: its JAX side.
        torch_trace: the trace of the PyTorch side.
        found: the comparison of the outputs.
    """
    if isinstance(torch, Trace) or isinstance(jax, Trace):
        return GradientResult(notes=("gradients were not compared: a side is a recording",))
    size = sum(torch_trace.nodes[i].size for i in torch_trace.parameters)
    if size > _LARGEST:
        note = f"gradients were not compared: the model has more than {_LARGEST:.0e} parameters"
        return GradientResult(notes=(note,))
    if not isinstance(found.jax, JaxTrace):
        return GradientResult()
    return compare_gradients(torch, jax, torch_trace, found.jax, found.alignment)


def compare_gradients(
    torch: TorchProgram,
    jax: JaxProgram,
    torch_trace: Trace,
    jax_trace: JaxTrace,
    alignment: Alignment,
) -> GradientResult:
    """Return whether the gradients of all parameters and inputs are equal in float64.

    Args:
        torch: the PyTorch program.
        jax: the JAX program.
        torch_trace: the trace of the PyTorch program.
        jax_trace: that of the JAX program, whose outputs are equal to PyTorch's.
        alignment: their values.
    """
    factors = _factors(torch_trace, jax_trace)
    matching = match_parameters(
        alignment,
        _floats(torch_trace, [*torch_trace.inputs, *torch_trace.parameters]),
        _floats(jax_trace, [*jax_trace.inputs, *jax_trace.parameters]),
    )
    notes = _notes(torch, torch_trace, matching.unclear)
    if not factors or not matching.twins:
        return GradientResult(notes=notes)
    mine = sorted({i for twins in matching.twins for i in twins.torch})
    other = sorted({i for twins in matching.twins for i in twins.jax})
    try:
        theirs = torch_backward(torch, torch_trace, mine, factors)
        ours = jax_backward(jax, jax_trace, other, factors)
    except NoGradientsError as error:
        return GradientResult(notes=(*notes, f"gradients were not compared: {error}"))
    compared, failed = _compared(matching.twins, torch_trace, jax_trace, theirs, ours)
    if failed:
        notes = (*notes, f"gradients in another order were not compared: {', '.join(failed)}")
    rows, different = _judged(compared, torch_trace, jax_trace)
    findings: list[Finding] = []
    if different:
        aligned = align(theirs.trace, ours.trace, TOLERANCE)
        findings = find_gradient_divergences(aligned, theirs, ours, different)
    return GradientResult(tuple(rows), tuple(findings), notes)


def _factors(torch: Trace, jax: Trace) -> dict[int, NDArray[Any]]:
    """Return the factors of the outputs that are real numbers on both sides, by position."""
    return {
        n: cotangent(torch.nodes[a].shape, n)
        for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True))
        if _floats(torch, [a]) and _floats(jax, [b]) and torch.nodes[a].shape == jax.nodes[b].shape
    }


def _floats(trace: Trace, indices: Iterable[int]) -> list[int]:
    """Return the nodes that are real numbers, once each."""
    return [i for i in dict.fromkeys(indices) if "float" in trace.nodes[i].dtype]


def _notes(torch: TorchProgram, trace: Trace, unclear: Sequence[str]) -> tuple[str, ...]:
    from obscura_jax.parity.torch_lift import modules_of

    notes = []
    parameters = {
        name: parameter.requires_grad
        for module in modules_of(torch.call)
        for name, parameter in module.named_parameters()
    }
    frozen = [name for name, trained in parameters.items() if not trained]
    if frozen and len(frozen) < len(parameters):
        notes.append(
            f"not trained in PyTorch, but compared all the same: {_few(frozen)} "
            "(requires_grad is False)"
        )
    if unclear:
        notes.append(
            "gradients were not compared, as several parameters have the same values; "
            f"perturb them first: {_few(unclear)}"
        )
    return tuple(notes)


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _compared(
    all_twins: Sequence[Twins], torch: Trace, jax: Trace, theirs: Backward, ours: Backward
) -> tuple[list[_Compared], list[str]]:
    """Return the gradients in one order, and the names of those for which there is none."""
    found, failed = [], []
    for twins in all_twins:
        sides = [
            _with_gradients(trace, backward, leaves)
            for trace, backward, leaves in ((torch, theirs, twins.torch), (jax, ours, twins.jax))
        ]
        both = in_one_order(sides[0], sides[1], twins.copies)
        if both is None:
            failed.append(_names(torch, twins.torch))
        else:
            found.append(_Compared(twins, *both))
    return found, failed


def _with_gradients(
    trace: Trace, backward: Backward, leaves: Sequence[int]
) -> list[tuple[NDArray[Any], NDArray[Any]]]:
    """Return the values and the gradient of each leaf; 0 if it has none."""
    values = trace.values(leaves)
    nodes = [backward.gradients[i] for i in leaves if i in backward.gradients]
    gradients = backward.trace.values(nodes)
    return [
        (
            values[i],
            gradients[backward.gradients[i]]
            if i in backward.gradients
            else np.zeros(values[i].shape),
        )
        for i in leaves
    ]


def _judged(
    compared: Sequence[_Compared], torch: Trace, jax: Trace
) -> tuple[list[Gradient], list[Twins]]:
    """Return a row for each gradient, and the parameters whose gradients differ."""
    sizes = [row.rms for row in compared if row.rms]
    least = _SMALL * float(np.median(sizes)) if sizes else 0.0
    rows, different = [], []
    for row in compared:
        scale = max(row.rms, least) or 1.0
        distance = _distance(row.theirs, row.ours) / scale
        equal = distance <= OUTPUT * TOLERANCE
        names = _names(torch, row.twins.torch), _names(jax, row.twins.jax)
        rows.append(Gradient(*names, distance, equal))
        if not equal:
            different.append(row.twins)
    return rows, different


def _names(trace: Trace, leaves: Iterable[int]) -> str:
    return ", ".join(dict.fromkeys(trace.nodes[i].name for i in leaves))


def _distance(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the largest difference; NaN and infinite entries are equal to those like them."""
    finite = np.isfinite(x) & np.isfinite(y)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True):
        return float("inf")
    return float(np.abs(x[finite] - y[finite]).max(initial=0.0))
