"""Find one place after another at which two programs part.

After each finding, the JAX program goes on with the values that it should have computed: by a mend
if one is known, else with PyTorch's values. So a second difference is not hidden by the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity import explain
from obscura_jax.parity.align import Alignment, Pair, Side, align, first_pairs
from obscura_jax.parity.findings import Finding
from obscura_jax.parity.fingerprint import close
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_trace import JaxTrace, evaluated
from obscura_jax.parity.layouts import blamed_layout
from obscura_jax.parity.mend import Repair, find_mend
from obscura_jax.parity.relation import apart, arrangements, correlation
from obscura_jax.parity.trace import Trace

TOLERANCE = 1e-9
_FLOAT32 = 2e-7  # the largest relative error of a number that was rounded to float32
_SAME = 3  # outputs are equal up to this multiple of the tolerance, as single entries are


@dataclass
class Divergence:
    """Everything that was found, with the last state of the JAX side.

    Attributes:
        findings: the places, in order.
        jax: the JAX side, with all mends and replaced values.
        alignment: the alignment before any of them.
        complete: whether the outputs are equal in the end.
    """

    findings: list[Finding] = field(default_factory=list)
    jax: Trace | None = None
    alignment: Alignment | None = None
    complete: bool = True


def find_divergences(torch: Trace, jax: Trace, limit: int = 16) -> Divergence:
    """Return the places at which two traces part.

    A recording can neither be mended nor continued, so one place is found at most.
    """
    found = Divergence(jax=jax)
    found.alignment = align(torch, jax, TOLERANCE)
    if not differing(torch, jax):
        return found
    if isinstance(jax, JaxTrace):
        jax, constants = _with_exact_constants(found.alignment, jax)
        found.jax = jax
        found.findings += constants
    for _ in range(limit):
        outputs = differing(torch, jax)
        if not outputs:
            break
        alignment = align(torch, jax, TOLERANCE)
        step = _step(alignment, torch, jax, outputs)
        if step is None:
            found.complete = False
            break
        finding, after = step
        found.findings.append(finding)
        if after is None:
            found.complete = False
            break
        found.jax = jax = after
    else:
        found.complete = not differing(torch, jax)
    return found


def differing(torch: Trace, jax: Trace) -> list[int]:
    """Return the positions of the outputs that are not equal in float64."""
    theirs, ours = torch.values(torch.outputs), jax.values(jax.outputs)
    return [
        n
        for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True))
        if theirs[a].shape != ours[b].shape or apart(theirs[a], ours[b]) > _SAME * TOLERANCE
    ]


def _effect(torch: Trace, before: Trace, after: Trace) -> float:
    """Return how much the outputs changed, relative to their rms."""
    theirs = torch.values(torch.outputs)
    old, new = before.values(before.outputs), after.values(after.outputs)
    changes = [0.0]
    for a, b in zip(torch.outputs, before.outputs, strict=True):
        x = theirs[a].astype(np.float64)
        finite = np.isfinite(old[b]) & np.isfinite(new[b])
        rms = float(np.sqrt(np.mean(np.square(x[np.isfinite(x)])))) if x.size else 0.0
        change = np.abs(old[b].astype(np.float64) - new[b])[finite].max(initial=0.0)
        changes.append(float(change) / (rms or 1.0))
    return max(changes)


def _with_exact_constants(alignment: Alignment, jax: JaxTrace) -> tuple[JaxTrace, list[Finding]]:
    """Replace JAX's values that differ from PyTorch's only because one is rounded to float32."""
    torch_side, jax_side = alignment.torch, alignment.jax
    given, findings = dict(jax.given), []
    for a, b in _float32_twins(torch_side, jax_side):
        theirs = torch_side.trace.values([a])[a]
        ours = jax.values([b])[b]
        value = next(
            (x for _, x in arrangements(theirs, ours.shape) if apart(x, ours) <= 10 * _FLOAT32),
            None,
        )
        if value is None:
            continue
        given[b] = value
        findings.append(
            Finding(
                "constant",
                explain.place_of(torch_side.node(a)),
                explain.place_of(jax_side.node(b)),
                torch_only=(explain.described(torch_side, a),),
                jax_only=(explain.described(jax_side, b),),
                relation=f"equal after rounding to float32: {apart(value, ours):.1e} apart",
            )
        )
    if not findings:
        return jax, []
    after = evaluated(jax.graph, jax.labels, jax.native, given)
    effect = _effect(torch_side.trace, jax, after)
    return after, [replace(finding, effect=effect) for finding in findings]


def _float32_twins(torch: Side, jax: Side) -> Iterator[tuple[int, int]]:
    """Yield a leaf that is exact in float32 on one side with its unrounded value on the other."""
    for side, other in ((torch, jax), (jax, torch)):
        lonely = [i for i in sorted(other.live) if i in other.classes and i not in other.matched]
        for i in sorted(side.live):
            node = side.node(i)
            if not node.leaf or i in side.matched or i not in side.classes or not node.is_float:
                continue
            twin = next(
                (
                    j
                    for j in lonely
                    if node.print is not None
                    and (p := other.node(j).print) is not None
                    and close(node.print, p, _FLOAT32)
                ),
                None,
            )
            if twin is None or not _exact_in_float32(side.trace.values([i])[i]):
                continue
            if side is torch:
                yield i, twin
            else:
                yield twin, i


def _exact_in_float32(x: NDArray[Any]) -> bool:
    return bool(np.array_equal(x, x.astype(np.float32).astype(np.float64), equal_nan=True))


def _step(
    alignment: Alignment, torch: Trace, jax: Trace, outputs: Sequence[int]
) -> tuple[Finding, Trace | None] | None:
    """Return the first place at which the sides part, and the JAX side that goes on from there."""
    pairs = first_pairs(
        alignment, [torch.outputs[n] for n in outputs], [jax.outputs[n] for n in outputs]
    )
    if not pairs:
        return _output_layout(alignment, torch, jax, outputs)
    pair = pairs[0]
    if not isinstance(jax, JaxTrace):
        return _described(alignment, pair), None
    repair = next((r for p in pairs[:4] if (r := find_mend(alignment, p, jax)) is not None), None)
    if repair is not None:
        return _mended(alignment, repair, torch, jax)
    finding = _described(alignment, pair)
    after, count = _replaced(alignment, pair, jax, outputs)
    if after is None:
        return finding, None
    effect = _effect(torch, jax, after)
    return replace(finding, effect=effect, occurrences=count), after


def _described(alignment: Alignment, pair: Pair) -> Finding:
    shared, mine, other = explain.operand_differences(alignment, pair)
    places = (alignment.torch.node(pair.torch), alignment.jax.node(pair.jax))
    if shared and not mine and not other and (found := blamed_layout(alignment, pair)) is not None:
        return Finding(
            "arrangement",
            explain.place_of(found[0]),
            explain.place_of(found[1]),
            shared,
            relation="the same values in another arrangement",
        )
    return Finding(
        "operation",
        explain.place_of(places[0]),
        explain.place_of(places[1]),
        shared,
        mine,
        other,
        explain.relation_words(alignment, pair),
    )


def _mended(
    alignment: Alignment, repair: Repair, torch: Trace, jax: JaxTrace
) -> tuple[Finding, Trace]:
    finding = _described(alignment, repair.pair)
    after = evaluated(repair.graph, jax.labels, jax.native, jax.given)
    place = explain.place_of(alignment.jax.node(repair.place))
    return (
        replace(
            finding,
            kind="operation",
            jax=place,
            mend=repair.mend,
            effect=_effect(torch, jax, after),
            occurrences=repair.occurrences,
        ),
        after,
    )


def _replaced(
    alignment: Alignment, pair: Pair, jax: JaxTrace, outputs: Sequence[int]
) -> tuple[JaxTrace | None, int]:
    """Give PyTorch's values to the JAX side where both come together again after a pair."""
    meeting = _meeting(alignment, pair)
    if meeting is None:
        return None, 0
    a, b, order = meeting
    torch_nodes = _same_line(alignment.torch, a)
    jax_nodes = _same_line(alignment.jax, b)
    if len(torch_nodes) != len(jax_nodes):
        torch_nodes, jax_nodes = [a], [b]
    given = dict(jax.given)
    theirs = alignment.torch.trace.values(torch_nodes)
    changed = 0
    for i, j in zip(torch_nodes, jax_nodes, strict=True):
        if i not in theirs or j in given:
            continue
        shape = jax.nodes[j].shape
        x = theirs[i]
        given[j] = x.transpose(order).reshape(shape) if order else x.reshape(shape)
        changed += 1
    if not changed:
        return None, 0
    return evaluated(jax.graph, jax.labels, jax.native, given), changed


def _same_line(side: Side, index: int) -> list[int]:
    """Return the nodes of the same operation, line and shape in all layers."""
    node = side.node(index)
    return [
        i
        for i in sorted(side.live)
        if (n := side.node(i)).op == node.op
        and n.source == node.source
        and n.shape == node.shape
        and n.fused == node.fused
        and _position(side, i) == _position(side, index)
    ]


def _position(side: Side, index: int) -> tuple[str, ...]:
    """Return what distinguishes several operations of one line: their operands' operations."""
    return tuple(side.node(i).op for i in side.node(index).inputs)


def _meeting(alignment: Alignment, pair: Pair) -> tuple[int, int, tuple[int, ...]] | None:
    """Return the nearest nodes of both sides that hold the same quantity, with the axes' order."""
    mine = gates(alignment.torch, pair.torch)
    other = gates(alignment.jax, pair.jax)
    theirs = alignment.torch.trace.values(mine)
    ours = alignment.jax.trace.values(other)
    best: tuple[float, int, int, tuple[int, ...]] | None = None
    for a in mine:
        for b in other:
            if a not in theirs or b not in ours or theirs[a].size != ours[b].size:
                continue
            for order, x in arrangements(theirs[a], ours[b].shape):
                c = correlation(x, ours[b])
                if best is None or c > best[0] + 1e-3:
                    best = (c, a, b, order)
                if c > 0.95 and order == tuple(range(x.ndim)):
                    break
        if best is not None and best[0] > 0.9:
            break
    if best is None or best[0] < 0.3:
        return None
    return best[1], best[2], best[3]


def _output_layout(
    alignment: Alignment, torch: Trace, jax: Trace, outputs: Sequence[int]
) -> tuple[Finding, Trace | None] | None:
    """Return a finding for outputs that hold the same values in another arrangement."""
    n = outputs[0]
    a, b = torch.outputs[n], jax.outputs[n]
    if alignment.torch.classes.get(a) != alignment.jax.classes.get(b):
        return None
    finding = Finding(
        "arrangement",
        explain.place_of(torch.nodes[a]),
        explain.place_of(jax.nodes[b]),
        relation="the same values in another arrangement",
        effect=apart(torch.values([a])[a], jax.values([b])[b]),
    )
    if not isinstance(jax, JaxTrace):
        return finding, None
    given = {**jax.given, b: torch.values([a])[a]}
    return finding, evaluated(jax.graph, jax.labels, jax.native, given)
