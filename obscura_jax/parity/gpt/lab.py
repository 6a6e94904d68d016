"""Compare two implementations: forward pass, gradients, optimizer state and greedy tokens.

At most 128 positions of a prompt are compared, evenly spaced from the first to the last. The 124M
model then needs less than 8 GiB in float64.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.generate import generate
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.parity.gpt.compare import Outputs, PrecisionPair, allow_float32, findings, worst
from obscura_jax.parity.gpt.paired_runs import PairedRuns, Precision, Prompts
from obscura_jax.parity.gpt.places import explain
from obscura_jax.parity.gpt.prompts import stress_prompts
from obscura_jax.parity.gpt.references import Reference
from obscura_jax.parity.gpt.torch_capture import LOGITS, capture_torch
from obscura_jax.parity.gpt.verdict import FORWARD, Report, Section, Tokens

_POSITIONS = 128
_LARGE = 40_000_000  # parameters; for larger models `steps` defaults to 0
_FIRST, _BATCH = "random ids", "batch of 3"
_THREADS = 1e-12  # of the largest entry; a sum over several threads varies by about 1e-16
_CONSTANTS = 1e-12  # smallest effect to report; rounding is about 1e-16


def compare_implementations(
    source: str,
    cfg: GPTConfig,
    params: Any,
    reference: Reference,
    *,
    seed: int = 0,
    end_of_text: int | None = None,
    steps: int | None = None,
    new_tokens: int = 16,
) -> Report:
    """Run both frameworks on the same weights in float32 and float64, and compare the results.

    Args:
        source: name of the weights, for the report.
        cfg: the model.
        params: its parameter tree, float32.
        reference: the PyTorch side.
        seed: seed of the prompts.
        end_of_text: the id that ends a text, used in one prompt; see `stress_prompts`.
        steps: number of optimizer steps after which its state is compared; 0 skips that. Default: 3
            for up to 40M parameters, else 0, because the state takes gigabytes in float64.
        new_tokens: number of greedy tokens to compare; 0 skips that.

    Raises:
        ValueError: if the reference's module fails on a prompt, or if results differ that depend on
            more than its input.
    """
    flat = named_tensors(cfg, params)
    if steps is None:
        steps = 3 if sum(x.size for x in flat.values()) <= _LARGE else 0
    runs = PairedRuns(cfg, flat, reference)
    prompts = stress_prompts(cfg, seed, end_of_text)
    batch = prompts[_BATCH]
    notes = [f"the module has no place for {name}" for name in reference.absent]
    with jax.default_matmul_precision("highest"):
        forward, remarks, constants = _forward(runs, prompts)
        gradients = _both_precisions(lambda dtype: runs.gradients(dtype, batch))
        sections = [forward, Section("gradients", findings(gradients, _BATCH))]
        del gradients
        if sections[1].first is not None:
            _check_repeatable(runs, batch)
        if steps:
            states = _both_precisions(lambda dtype: runs.optimizer_state(dtype, batch, steps))
            sections.append(Section(f"optimizer after {steps} steps", findings(states, _BATCH)))
            del states
        else:
            notes.append("optimizer state: not compared; pass --steps 3 to compare it")
        tokens = _tokens(runs, prompts, new_tokens)
    notes += remarks
    if constants:
        sections = [replace(s, findings=allow_float32(s.findings)) for s in sections]
    if jax.default_backend() != "cpu":
        notes.append(default_precision_note(runs, batch))
    return Report(source, reference.label, cfg, sections, tokens, notes)


def _both_precisions(run: Callable[[Precision], Outputs]) -> PrecisionPair:
    """Call `run` in both precisions."""
    float64 = run("float64")
    return PrecisionPair(run("float32"), float64)


def _forward(runs: PairedRuns, prompts: Prompts) -> tuple[Section, list[str], bool]:
    """Compare every intermediate on every prompt, and look for the line of the first difference.

    Returns:
        The section, remarks, and whether float32 constants explain all differences.
    """
    high = runs.intermediates("float64", prompts, _some_positions)
    low = runs.intermediates("float32", prompts, _some_positions)
    rows = [row for name in prompts for row in findings(PrecisionPair(low[name], high[name]), name)]
    theirs = high[_FIRST].theirs
    parts = sorted({t.name.split(".", 2)[-1] for t in runs.reference.taps if t.name not in theirs})
    remarks = [f"not found in the PyTorch module: {', '.join(parts)}"] if parts else []
    if runs.reference.users:
        remarks += _constants(runs, prompts[_FIRST], theirs["logits"])
    section = Section(FORWARD, worst(rows))
    if section.first is None:
        return section, remarks, False
    row = next(row for row in rows if row.name == section.first.name and not row.equal)
    why = explain(runs, prompts[row.prompt], row.name)
    if why.constants:
        return section, [*remarks, str(why.words)], True
    return replace(section, cause=why.words, places=why.places), remarks, False


def _check_repeatable(runs: PairedRuns, ids: NDArray[Any]) -> None:
    """Raise ValueError if the PyTorch module's gradients depend on more than its input."""
    module = runs.reference.build("float64")
    first, second = (runs.their_gradients(module, ids) for _ in range(2))
    for name, x in first.items():
        scale = float(np.abs(x).max()) or 1.0
        if not np.abs(x - second[name]).max() <= _THREADS * scale:
            raise ValueError(
                f"{runs.reference.label} draws random numbers or keeps state in its backward pass: "
                f"two runs on the same input give different gradients of {name}; only a function "
                "of its input can be compared"
            )


def _tokens(runs: PairedRuns, prompts: Prompts, count: int) -> list[Tokens]:
    """Compare greedy tokens in float32 after the beginning of each short prompt."""
    context = runs.cfg.context_length
    count = min(count, context // 2)
    if not count:
        return []
    module, found = runs.reference.build("float32"), []
    length = min(8, context - count)
    starts = {n: ids[:1, :length] for n, ids in prompts.items() if n != "full context"}
    rows = [start[0].tolist() for start in starts.values()]
    ours = generate(runs.model, runs.params("float32"), rows, count).tokens
    for (name, ids), mine in zip(starts.items(), ours, strict=True):
        for at in range(count):
            logits = runs.their_logits(module, ids)
            chosen = int(logits.argmax())
            if chosen != mine[at]:
                exact = runs.their_logits(runs.reference.build("float64"), ids)
                margin = abs(float(exact[chosen] - exact[mine[at]]))
                rounding = float(np.abs(logits - exact).max())
                found.append(Tokens(name, count, at, mine[at], chosen, margin, rounding))
                break
            ids = np.append(ids, [[chosen]], axis=1)
        else:
            found.append(Tokens(name, count))
    return found


def _constants(runs: PairedRuns, ids: NDArray[Any], exact: NDArray[Any]) -> list[str]:
    """Return a note on the module's float32 constants if the float64 logits depend on them."""
    module = runs.reference.build("float32")
    with runs.reference.guest("fails on a prompt"):
        rounded = capture_torch(module.double(), ids, [LOGITS])["logits"]
    moved = float(np.abs(rounded - exact).max() / (np.abs(exact).max() or 1.0))
    if not moved > _CONSTANTS:
        return []
    return [
        "the module creates constants in PyTorch's default type, float32; this changes its float64 "
        f"logits by {moved:.1e} and is not a mistake, so the float64 runs create them in float64"
    ]


def default_precision_note(runs: PairedRuns, ids: NDArray[Any]) -> str:
    """Return a sentence on the effect of the device's default matrix products on the logits.

    An accelerator's default is less precise than float32. Everything else in a report is computed
    with precision "highest".
    """
    params, logits = {"params": runs.params("float32")}, {}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            logits[precision] = np.asarray(jax.jit(runs.model.apply)(params, ids))
    pinned = logits["highest"]
    difference = np.abs(logits["default"] - pinned).max() / np.abs(pinned).max()
    return (
        f"with the default matrix products of {jax.default_backend()} the float32 logits "
        f"would change by {difference:.1e}"
    )


def _some_positions(name: str, value: Any) -> Any:
    """Return at most 128 positions of an intermediate; positions are its second axis from last."""
    length = value.shape[-2]
    if length <= _POSITIONS:
        return value
    return value[..., np.linspace(0, length - 1, _POSITIONS).round().astype(int), :]
