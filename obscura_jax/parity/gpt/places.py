"""Find the lines at which a PyTorch GPT and ours part, with the comparison of any two programs."""

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.explain import place_of
from obscura_jax.parity.findings import Finding, Verdict
from obscura_jax.parity.gpt.outputs import logits_in
from obscura_jax.parity.gpt.paired_runs import PairedRuns
from obscura_jax.parity.gpt.wording import constants_note, operation, sentence
from obscura_jax.parity.guest import GuestError
from obscura_jax.parity.program import NotComparableError, jax_program, torch_program
from obscura_jax.parity.side_errors import failure_of
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Trace
from obscura_jax.parity.wording import some

_LINES = 3  # most lines to name


@dataclass(frozen=True)
class Explanation:
    """The reason for a difference of the logits.

    Attributes:
        words: the reason, or None if it is unknown.
        places: the places at which the programs part, in order.
        constants: whether constants that are rounded to float32 are the only reason.
    """

    words: str | None = None
    places: tuple[Finding, ...] = ()
    constants: bool = False


def explain(runs: PairedRuns, ids: NDArray[Any], name: str) -> Explanation:
    """Compare every operation of both models, and return why a tensor differs.

    Args:
        runs: the models.
        ids: (B, T).
        name: the first tensor that differs on these ids.

    Raises:
        ValueError: if the module's results depend on more than its input.
    """
    import torch

    module = runs.reference.build("float64")

    def logits(rows: Any) -> Any:
        return logits_in(module(rows.clone()), ids.shape, runs.cfg.vocab_size)  # it may overwrite

    theirs = torch_program(logits, torch.from_numpy(ids.astype(np.int64)))
    ours = jax_program(partial(runs.model.apply, {"params": runs.params("float32")}), ids)
    guest = runs.reference.guest
    try:
        with guest(lambda error: "fails under observation" if failure_of(error) else None):
            trace = trace_torch(theirs)
            report = compare(trace, ours, gradients=False)
    except NotComparableError as error:
        raise ValueError(f"{guest.label} cannot be compared: {error}") from error
    except GuestError as error:
        return Explanation(f"no line was found, because {error}")
    if report.verdict is Verdict.NOT_COMPARABLE:
        raise ValueError(f"{guest.label} cannot be compared: {report.reason}")
    if report.verdict is Verdict.EQUAL:
        return Explanation(_of_equal(trace, report.tolerance))
    if report.verdict is Verdict.EQUAL_WITH_CONSTANTS:
        return Explanation(constants_note(report.findings), constants=True)
    places = [finding for finding in report.findings if finding.kind != "constant"]
    if not places:
        last = operation(place_of(trace.nodes[trace.outputs[0]]))
        return Explanation(f"no line was found; PyTorch's last operation is {last}")
    if places[0].torch and _is_later(places[0].torch.path, name):
        # A small difference may be noticed only in a later block. That line is not the first one.
        if places[0].mend is None:
            return Explanation()
        places[0] = replace(places[0], torch=None)
    return Explanation(sentence(places[0]), tuple(places))


def _is_later(path: str, name: str) -> bool:
    """Return True if a module is in a block after the one that computes or first uses a tensor."""
    if name in ("final_norm", "logits"):
        return False
    of_tensor, of_path = (re.match(r"trf_blocks\.(\d+)(\.)?", x) for x in (name, path))
    block = int(of_tensor[1]) if of_tensor else -1
    inside = of_tensor is not None and of_tensor[2] is not None
    return of_path is not None and int(of_path[1]) > block + (not inside)


def _of_equal(trace: Trace, tolerance: float) -> str:
    """Return why a difference vanishes if every operation is computed in float64."""
    rounded = [
        str(node.source)
        for node in trace.nodes
        if node.lowered and node.source and any(trace.nodes[i].is_float for i in node.inputs)
    ]
    lines = list(dict.fromkeys(rounded))
    where = f"PyTorch rounds to lower precision at {some(lines, _LINES, 'line')}; " if lines else ""
    return f"{where}with every operation in float64, both are equal up to {tolerance:.0e}"
