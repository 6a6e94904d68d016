"""Compare a PyTorch program with a JAX program."""

from dataclasses import replace

from obscura_jax.parity.align import Alignment
from obscura_jax.parity.comparable import check_comparable
from obscura_jax.parity.diverge import Divergence, find_divergences
from obscura_jax.parity.findings import Operation, Output, Report, Verdict
from obscura_jax.parity.gradients import gradients_if_possible
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.not_finite import not_finite
from obscura_jax.parity.output_order import in_order_of
from obscura_jax.parity.program import JaxProgram, NotComparableError, TorchProgram, name_of
from obscura_jax.parity.recording_checks import check_recordings, recording_notes
from obscura_jax.parity.relation import OUTPUT, TOLERANCE, apart
from obscura_jax.parity.summary import operations_of, side_of
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Trace

Torch = TorchProgram | Trace
Jax = JaxProgram | Trace


def compare(
    torch_side: Torch, jax_side: Jax, *, gradients: bool = True, operations: bool = False
) -> Report:
    """Return whether a PyTorch program and a JAX program compute the same, and where they part.

    Both run in float64, whatever their own precision, and every operation is compared with those of
    the other side. Where values part, changes of the JAX program are tried, and one that makes both
    sides equal is reported as the mend.

    Args:
        torch_side: the PyTorch program, see `torch_program`; or a recording of it.
        jax_side: the JAX program, see `jax_program`; or a recording of it.
        gradients: whether to compare the gradients of all parameters too. Recordings have none.
        operations: whether the report lists every operation of both sides.

    Returns:
        The report; `print` shows it. Programs that cannot be compared, because one of them draws
        random numbers or their inputs or outputs do not correspond, have the verdict "not
        comparable" and a reason.

    Raises:
        Exception: whatever a program itself raises.
    """
    try:
        torch = trace_torch(torch_side) if isinstance(torch_side, TorchProgram) else torch_side
        jax = trace_jax(jax_side) if isinstance(jax_side, JaxProgram) else jax_side
        check_recordings(torch, jax)
        jax_side, jax = in_order_of(torch.labels, jax_side, jax)
        check_comparable(torch, jax)
    except NotComparableError as error:
        return Report(Verdict.NOT_COMPARABLE, str(error), tolerance=TOLERANCE)
    unusual = not_finite(torch, jax)
    found = find_divergences(torch, jax)
    alignment, outputs = found.alignment, _outputs(torch, jax)
    report = Report(
        Verdict.EQUAL,
        outputs=outputs,
        findings=unusual.added_to(found.findings),
        sides=(
            side_of(alignment.torch, alignment.jax, _name(torch_side), torch_side),
            side_of(alignment.jax, alignment.torch, _name(jax_side), jax_side),
        ),
        tolerance=TOLERANCE,
        complete=found.complete,
        notes=(*unusual.notes, *recording_notes(torch, jax, outputs)),
        operations=_operations(alignment) if operations else (),
    )
    report = replace(report, verdict=_verdict(report))
    return _with_gradients(report, torch_side, jax_side, torch, found) if gradients else report


def assert_parity(torch_side: Torch, jax_side: Jax, *, gradients: bool = True) -> None:
    """Raise AssertionError, with the report as its message, unless two programs are equal.

    Args:
        torch_side: the PyTorch program, see `torch_program`; or a recording of it.
        jax_side: the JAX program, see `jax_program`; or a recording of it.
        gradients: whether to compare the gradients of all parameters too.
    """
    report = compare(torch_side, jax_side, gradients=gradients)
    if not report.equal:
        raise AssertionError(str(report))


def _verdict(report: Report) -> Verdict:
    different = not all(output.equal for output in report.outputs)
    constants = all(finding.kind == "constant" for finding in report.findings)
    if different and not (report.findings and constants and report.complete):
        return Verdict.DIFFERS
    return Verdict.EQUAL_WITH_CONSTANTS if report.findings else Verdict.EQUAL


def _with_gradients(
    report: Report, torch_side: Torch, jax_side: Jax, torch: Trace, found: Divergence
) -> Report:
    """Add the gradients to the report on two programs whose outputs are equal."""
    if not report.equal:
        return report
    backward = gradients_if_possible(torch_side, jax_side, torch, found)
    return replace(
        report,
        verdict=report.verdict if backward.equal else Verdict.DIFFERS,
        gradients=backward.gradients,
        gradient_findings=backward.findings,
        notes=(*report.notes, *backward.notes),
    )


def _name(side: Torch | Jax) -> str:
    return "a recording" if isinstance(side, Trace) else name_of(side.call)


def _outputs(torch: Trace, jax: Trace) -> tuple[Output, ...]:
    theirs, ours = torch.values(torch.outputs), jax.values(jax.outputs)
    rows = []
    for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True)):
        difference, native = apart(theirs[a], ours[b]), apart(torch.native[n], jax.native[n])
        equal = difference <= OUTPUT * TOLERANCE
        rows.append(Output(torch.labels[n], torch.nodes[a].shape, difference, native, equal))
    return tuple(rows)


def _operations(alignment: Alignment) -> tuple[Operation, ...]:
    return operations_of(alignment.torch, alignment.jax) + operations_of(
        alignment.jax, alignment.torch
    )
