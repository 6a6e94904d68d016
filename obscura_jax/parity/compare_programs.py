"""Compare a PyTorch program with a JAX program."""

from obscura_jax.parity.diverge import find_divergences
from obscura_jax.parity.findings import Output, Report, Verdict
from obscura_jax.parity.gradients import GradientResult, gradients_if_possible
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import JaxProgram, NotComparableError, TorchProgram
from obscura_jax.parity.relation import apart
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Trace


def compare(
    torch_side: TorchProgram | Trace,
    jax_side: JaxProgram | Trace,
    *,
    gradients: bool = True,
    operations: bool = False,
) -> Report:
    """Return whether two programs compute the same, and where they part.

    Args:
        torch_side: the PyTorch program, or a recording of it.
        jax_side: the JAX program, or a recording of it.
        gradients: whether to compare the gradients of all parameters too.
        operations: whether the report lists every operation of both sides.
    """
    try:
        torch = trace_torch(torch_side) if isinstance(torch_side, TorchProgram) else torch_side
        jax = trace_jax(jax_side) if isinstance(jax_side, JaxProgram) else jax_side
        check_comparable(torch, jax)
    except NotComparableError as error:
        return Report(Verdict.NOT_COMPARABLE, str(error))
    found = find_divergences(torch, jax)
    verdict = Verdict.EQUAL
    if found.findings:
        constants = all(finding.kind == "constant" for finding in found.findings)
        settled = constants and found.complete
        verdict = Verdict.EQUAL_WITH_CONSTANTS if settled else Verdict.DIFFERS
    elif not found.complete:
        verdict = Verdict.DIFFERS
    backward = GradientResult()
    if gradients and verdict is not Verdict.DIFFERS:
        backward = gradients_if_possible(torch_side, jax_side, torch, found)
        if not backward.equal:
            verdict = Verdict.DIFFERS
    return Report(
        verdict,
        outputs=outputs_of(torch, jax),
        findings=tuple(found.findings),
        gradients=backward.gradients,
        gradient_findings=backward.findings,
        complete=found.complete,
        notes=backward.notes,
    )


def check_comparable(torch, jax):
    if len(torch.outputs) != len(jax.outputs):
        raise NotComparableError(
            f"PyTorch returns {len(torch.outputs)} arrays ({', '.join(torch.labels)}) and JAX {len(jax.outputs)} ({', '.join(jax.labels)})"
        )


def outputs_of(torch, jax):
    theirs, ours = torch.values(torch.outputs), jax.values(jax.outputs)
    rows = []
    for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True)):
        difference = apart(theirs[a], ours[b])
        native = apart(torch.native[n], jax.native[n])
        rows.append(
            Output(torch.labels[n], torch.nodes[a].shape, difference, native, difference <= 3e-9)
        )
    return tuple(rows)
