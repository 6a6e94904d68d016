"""The verdict on two implementations: forward pass, gradients, optimizer slots, tokens.

Of prompts longer than 128 positions 128 are compared, spread evenly, the first and last among them:
so the 124M model in float64 stays under 8 GiB.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.generate import generate
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.parity.causes import cause
from obscura_jax.parity.compare import RATIO, Finding, PrecisionPair, findings, worst
from obscura_jax.parity.paired_runs import PairedRuns, Precision, Prompts
from obscura_jax.parity.prompts import stress_prompts
from obscura_jax.parity.references import Reference
from obscura_jax.parity.repeatable import check_repeatable
from obscura_jax.parity.verdict import FORWARD, Report, Section, Tokens

_POSITIONS = 128
_LARGE = 40_000_000  # parameters; optimizer slots of more are compared on demand only
_FIRST, _BATCH = "random ids", "batch of 3"
_T = TypeVar("_T")


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
    default_precision_too: bool | None = None,
) -> Report:
    """Run both frameworks on the same weights in both precisions, and compare all there is.

    Args:
        source: what to call the weights.
        cfg: the model.
        params: its parameter tree, float32.
        reference: the PyTorch side.
        seed: of the prompts.
        end_of_text: the id that ends a text, for one of the prompts; see `stress_prompts`.
        steps: optimizer steps after which its slots are compared; by default 3, and none for
            models of more than 40M parameters, whose slots in float64 take gigabytes.
        new_tokens: greedy tokens to compare; 0 compares none.
        default_precision_too: also run with the accelerator's default matrix products, which are
            not float32's; by default where there is one.

    Raises:
        ValueError: when the reference's module fails on a prompt.
    """
    flat = named_tensors(cfg, params)
    if steps is None:
        steps = 3 if sum(x.size for x in flat.values()) <= _LARGE else 0
    sides = PairedRuns(cfg, flat, reference)
    prompts = stress_prompts(cfg, seed, end_of_text)
    batch = prompts[_BATCH]
    notes = [f"the module has no place for {name}" for name in reference.absent]
    if reference.users:
        seen, drew = check_repeatable(sides, prompts[_FIRST], batch)
        if drew:
            notes.append("the module draws random numbers; in two runs they changed nothing")
        notes += _constants(sides, prompts[_FIRST], seen["logits"])
    with jax.default_matmul_precision("highest"):
        sections = [_forward(sides, prompts)]
        runs = _both_precisions(lambda dtype: sides.gradients(dtype, batch))
        sections.append(Section("gradients", findings(PrecisionPair(*runs), _BATCH)))
        del runs
        if steps:
            runs = _both_precisions(lambda dtype: sides.slots(dtype, batch, steps))
            title = f"optimizer after {steps} steps"
            sections.append(Section(title, findings(PrecisionPair(*runs), _BATCH)))
        else:
            notes.append("optimizer slots: not compared for a model of this size (--steps 3 does)")
        tokens = _tokens(sides, prompts, new_tokens)
    if unseen := sections[0].note:
        notes.append(unseen)
    if default_precision_too or (default_precision_too is None and jax.default_backend() != "cpu"):
        notes.append(_default_precision(sides, batch))
    return Report(source, reference.label, cfg, sections, tokens, notes)


def _both_precisions(run: Callable[[Precision], tuple[_T, _T]]) -> tuple[_T, _T, _T, _T]:
    """Both precisions of a run of both sides, in the order of `PrecisionPair`."""
    ours64, theirs64 = run("float64")
    ours32, theirs32 = run("float32")
    return ours32, theirs32, ours64, theirs64


def _forward(sides: PairedRuns, prompts: Prompts) -> Section:
    """Every intermediate on every prompt; and the cause, where one differs."""
    runs = _both_precisions(lambda dtype: sides.intermediates(dtype, prompts, _some_positions))
    rows = [
        row
        for name in prompts
        for row in findings(PrecisionPair(*(run[name] for run in runs)), name)
    ]
    ours, theirs = (next(iter(run.values())) for run in runs[2:])
    parts = sorted({name.split(".", 2)[-1] for name in ours if name not in theirs})
    said = [f"not seen in the PyTorch module: {', '.join(parts)}"] if parts else []
    found = worst(rows)
    if scaled := _scaled_otherwise(found):
        said.append("not compared: att.scores, which it scales elsewhere; att.weights are equal")
    kept = [row for row in found if row.name not in scaled]
    section = Section(FORWARD, kept, note="; ".join(said))
    if section.first is None:
        return section
    row = next(row for row in rows if row.name == section.first.name and not row.equal)
    return replace(section, cause=_why(sides, row, prompts[row.prompt]))


def _scaled_otherwise(rows: list[Finding]) -> set[str]:
    """Return the scores that differ although the weights made of them are equal.

    A program may as well scale its queries as its scores.
    """
    equal = {row.name: row.equal for row in rows}
    weights = {name: name.replace(".scores", ".weights") for name in equal if ".att.scores" in name}
    return {name for name, made in weights.items() if not equal[name] and equal.get(made, False)}


def _why(sides: PairedRuns, row: Finding, ids: NDArray[Any]) -> str | None:
    ours, theirs = (of["x"] for of in sides.intermediates("float64", {"x": ids}))
    found = cause(row.name, ours, theirs, sides.cfg, sides.flat64())
    if found is None and row.float64 <= 4 * row.expected64 * RATIO:
        return "as if computed in float32 there, whatever the type of the input"
    return found


def _tokens(sides: PairedRuns, prompts: Prompts, count: int) -> list[Tokens]:
    """Greedy tokens in float32, after the beginning of each short prompt."""
    context = sides.cfg.context_length
    count = min(count, context // 2)
    if not count:
        return []
    module, found = sides.build("float32"), []
    length = min(8, context - count)
    starts = {n: ids[:1, :length] for n, ids in prompts.items() if n != "full context"}
    rows = [start[0].tolist() for start in starts.values()]
    ours = generate(sides.model, sides.params("float32"), rows, count).tokens
    for (name, ids), mine in zip(starts.items(), ours, strict=True):
        for at in range(count):
            logits = sides.their_logits(module, ids)
            chosen = int(logits.argmax())
            if chosen != mine[at]:
                exact = sides.their_logits(sides.build("float64"), ids)
                margin = abs(float(exact[chosen] - exact[mine[at]]))
                rounding = float(np.abs(logits - exact).max())
                found.append(Tokens(name, count, at, mine[at], chosen, margin, rounding))
                break
            ids = np.append(ids, [[chosen]], axis=1)
        else:
            found.append(Tokens(name, count))
    return found


def _constants(sides: PairedRuns, ids: NDArray[Any], exact: NDArray[Any]) -> list[str]:
    """Return a note on float32 constants of theirs, if the float64 logits depend on them."""
    if not sides.constants.found:
        return []
    as_written = PairedRuns(sides.cfg, sides.flat, sides.reference, as_written=True)
    logits = as_written.their_intermediates(as_written.build("float64"), ids)["logits"]
    moved = float(np.abs(logits - exact).max() / (np.abs(exact).max() or 1.0))
    return [sides.constants.note(moved)] if moved else []


def _default_precision(sides: PairedRuns, ids: NDArray[Any]) -> str:
    """What the logits would be with the device's default matrix products."""
    params, logits = {"params": sides.params("float32")}, {}
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            logits[precision] = np.asarray(jax.jit(sides.model.apply)(params, ids))
    pinned = logits["highest"]
    apart = np.abs(logits["default"] - pinned).max() / np.abs(pinned).max()
    return (
        f"with the default matrix products of {jax.default_backend()} the float32 logits "
        f"would move by {apart:.1e}"
    )


def _some_positions(name: str, value: Any) -> Any:
    """At most 128 of the positions of an intermediate, which lie on its axis before the last."""
    length = value.shape[-2]
    if length <= _POSITIONS:
        return value
    return value[..., np.linspace(0, length - 1, _POSITIONS).round().astype(int), :]
