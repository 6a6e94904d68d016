"""Find one place after another at which two programs part.

After each finding, the JAX program continues with the values that it should have computed: by a
mend if one is known, else with PyTorch's values. So a second difference is not hidden by the first.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity import explain
from obscura_jax.parity.align import Alignment, Pair, Side, align, first_pairs
from obscura_jax.parity.anchors import Anchor, anchors
from obscura_jax.parity.changes import Effort, Setting
from obscura_jax.parity.findings import Finding, Mend, Place
from obscura_jax.parity.fingerprint import close
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_trace import JaxTrace, changed
from obscura_jax.parity.layouts import blamed_layout
from obscura_jax.parity.mend import Repair, find_mend
from obscura_jax.parity.parallel import same_line
from obscura_jax.parity.relation import (
    OUTPUT,
    TOLERANCE,
    apart,
    arrangement,
    arrangements,
    correlation,
)
from obscura_jax.parity.trace import Node, Trace

_LAYOUTS = ("concat", "heads", "split", "position", "direction")
_FLOAT32 = 2e-7  # the largest relative error of a number that was rounded to float32
_EFFORT, _ALL_EFFORT = 50_000, 200_000  # of the search for one mend, and for all
_PAIRS, _ANCHORS = 4, 4  # pairs of operations, and anchors after each, that are considered
_EXACT = 1e-11  # tolerance below which no constant is rounded; gradients may show it enlarged
_ROUNDED = 1e-6  # tolerance for a recording with such numbers, which cannot be replaced in it


@dataclass
class Divergence:
    """Everything that was found, with the last state of the JAX side.

    Attributes:
        alignment: the alignment before any change.
        jax: the JAX side, with all mends and replaced values.
        findings: the places, in order.
        complete: whether the outputs are equal in the end.
    """

    alignment: Alignment
    jax: Trace
    findings: list[Finding] = field(default_factory=list)
    complete: bool = True


def find_divergences(torch: Trace, jax: Trace, limit: int = 16) -> Divergence:
    """Return the places at which two traces part.

    A recording can neither be mended nor continued, so one place is found at most.
    """
    found = Divergence(align(torch, jax, TOLERANCE), jax)
    if not differing(torch, jax, _EXACT):
        return found
    tolerance = TOLERANCE
    if isinstance(jax, JaxTrace):
        jax, constants = _with_exact_constants(found.alignment, jax)
        found.jax = jax
        found.findings += constants
    elif differing(torch, jax) and any(_float32_twins(found.alignment.torch, found.alignment.jax)):
        tolerance = _ROUNDED
    effort = Effort(_ALL_EFFORT)
    for _ in range(limit):
        outputs = differing(torch, jax, tolerance)
        if not outputs:
            found.complete = tolerance == TOLERANCE
            break
        alignment = align(torch, jax, tolerance)
        step = _step(alignment, torch, jax, outputs, effort)
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
    found.findings = _grouped(found.findings)
    return found


def _grouped(findings: Sequence[Finding]) -> list[Finding]:
    """Join the findings of the same lines, such as those of several layers."""
    groups: dict[object, Finding] = {}
    for finding in findings:
        places = (finding.torch, finding.jax)
        lines = tuple(place and (place.source, place.op) for place in places)
        key = (finding.kind, *lines, finding.mend and finding.mend.kind)
        first = groups.setdefault(key, finding)
        if first is not finding:
            count = first.occurrences + finding.occurrences
            groups[key] = replace(first, occurrences=count)
    return list(groups.values())


def differing(torch: Trace, jax: Trace, tolerance: float = TOLERANCE) -> list[int]:
    """Return the positions of the outputs that are not equal in float64."""
    theirs, ours = torch.values(torch.outputs), jax.values(jax.outputs)
    return [
        n
        for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True))
        if theirs[a].shape != ours[b].shape or apart(theirs[a], ours[b]) > OUTPUT * tolerance
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
        theirs = torch_side.trace.values([a]).get(a)
        if theirs is None:  # a recording may lack it
            continue
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
    after = changed(jax, given=given)
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
            value = None if twin is None else side.trace.values([i]).get(i)
            if twin is None or value is None or not _exact_in_float32(value):
                continue
            if side is torch:
                yield i, twin
            else:
                yield twin, i


def _exact_in_float32(x: NDArray[Any]) -> bool:
    return bool(np.array_equal(x, x.astype(np.float32).astype(np.float64), equal_nan=True))


def _step(
    alignment: Alignment, torch: Trace, jax: Trace, outputs: Sequence[int], effort: Effort
) -> tuple[Finding, Trace | None] | None:
    """Return the first place at which the sides part, and the JAX side that continues there."""
    pairs = first_pairs(
        alignment, [torch.outputs[n] for n in outputs], [jax.outputs[n] for n in outputs]
    )
    if not pairs:
        return _output_layout(alignment, torch, jax, outputs)
    if not isinstance(jax, JaxTrace):
        return _described(alignment, pairs[0]), None
    located: tuple[Pair, Setting, tuple[Anchor, ...]] | None = None
    for pair in pairs[:_PAIRS]:
        ends = gates(alignment.jax, pair.jax)
        setting = Setting.around(alignment, pair, jax, ends, Effort(min(_EFFORT, effort.left)))
        found = tuple(islice(anchors(setting), _ANCHORS))
        if located is not None and _nodes(found) == _nodes(located[2]):
            continue  # the mend would have been found
        repair = find_mend(setting, found)
        effort.left -= _EFFORT - setting.effort.left
        if repair is not None:
            return _mended(alignment, pair, repair, torch, jax)
        if found and located is None:
            located = pair, setting, found
    if located is not None:
        pair, setting, found = located
        return _injected(alignment, pair, setting, found[0], torch, jax)
    pair = pairs[0]
    finding = _described(alignment, pair)
    after, count = _replaced(alignment, pair, jax, outputs)
    if after is None:
        return finding, None
    effect = _effect(torch, jax, after)
    return replace(finding, effect=effect, occurrences=count), after


def _nodes(found: tuple[Anchor, ...]) -> list[tuple[int, int]]:
    return [(anchor.torch, anchor.jax) for anchor in found]


def _described(alignment: Alignment, pair: Pair) -> Finding:
    finding = explain.finding_at(alignment, pair)
    found = blamed_layout(alignment, pair)
    if not finding.shared or found is None:
        return finding
    return Finding(
        "arrangement",
        explain.place_of(found[0]),
        explain.place_of(found[1]),
        finding.shared,
        relation="the same values in another arrangement",
    )


def _mended(
    alignment: Alignment, pair: Pair, repair: Repair, torch: Trace, jax: JaxTrace
) -> tuple[Finding, Trace]:
    change, anchor = repair.change, repair.anchor
    finding = _described(alignment, pair)
    arranged = finding.kind == "arrangement"
    node = alignment.torch.node(_torch_place(alignment, pair, anchor))
    theirs: Place | None = explain.place_of(node)
    place = change.line if change.line != anchor.jax else _jax_place(alignment, pair, anchor)
    after = changed(jax, repair.graph)
    if arranged or change.kind in _LAYOUTS:
        twin = _twin(alignment, change.line)
        theirs = finding.torch if arranged else twin or theirs
    elif not alignment.jax.node(place).is_float:
        theirs = _integers_twin(alignment, pair, after, place) or theirs
    elif change.place is None and not anchor.lacking and not anchor.superfluous:
        theirs = _values_twin(alignment, after, place) or theirs
    return (
        replace(
            finding,
            torch=theirs,
            jax=explain.place_of(alignment.jax.node(place)),
            mend=Mend(change.kind, alignment.jax.node(place).source, change.words),
            effect=_effect(torch, jax, after),
            occurrences=repair.occurrences,
        ),
        after,
    )


def _twin(alignment: Alignment, index: int) -> Place | None:
    """Return PyTorch's operation with the values of a JAX layout operation, if it has one."""
    torch, jax = alignment.torch, alignment.jax
    if not jax.node(index).layout or not jax.is_strong(index):
        return None
    twins = [torch.node(i) for i in torch.by_class.get(jax.classes[index], ())]
    layouts = [node for node in twins if node.layout and not node.leaf]
    alike = [node for node in layouts if node.shape == jax.node(index).shape]
    return next((explain.place_of(node) for node in (*alike, *layouts)), None)


def _integers_twin(alignment: Alignment, pair: Pair, after: JaxTrace, place: int) -> Place | None:
    """Return PyTorch's operation that computes the integers or the mask of a mended operation."""
    torch = alignment.torch
    found: set[int] = set()
    stack = list(torch.node(pair.torch).inputs)
    while stack:
        i = stack.pop()
        if i not in found and not torch.node(i).is_float and not torch.node(i).leaf:
            found.add(i)
            stack += torch.node(i).inputs
    ours = after.values([place])[place]
    theirs = sorted(torch.trace.values(found).items())
    inverted = [(i, ~x) for i, x in theirs if x.dtype == bool]
    for i, x in (*theirs, *inverted):
        if x.size == ours.size and arrangement(x.astype(float), ours.astype(float)) is not None:
            return explain.place_of(torch.node(i))
    return None


def _values_twin(alignment: Alignment, after: JaxTrace, place: int) -> Place | None:
    """Return PyTorch's operation with the values of a mended one."""
    torch, ours = alignment.torch, after.nodes[place].print
    if ours is None or not ours.telling:
        return None
    twins = [
        i
        for i in sorted(torch.live)
        if not torch.node(i).leaf
        and (p := torch.node(i).print) is not None
        and close(p, ours, alignment.tolerance)
    ]
    computed = [i for i in twins if not torch.node(i).layout]
    return next((explain.place_of(torch.node(i)) for i in (*computed, *twins)), None)


def _torch_place(alignment: Alignment, pair: Pair, anchor: Anchor) -> int:
    """Return where PyTorch lacks an operation of JAX: the operation before, or the one after."""
    jax = alignment.jax
    before = anchor.operand if anchor.superfluous else None
    if before is not None and jax.node(before).source == jax.node(anchor.jax).source:
        return anchor.torch
    return pair.torch


def _jax_place(alignment: Alignment, pair: Pair, anchor: Anchor) -> int:
    """Return where JAX lacks an operation of PyTorch: the operation before, or the one after."""
    if not anchor.lacking:
        return anchor.jax
    torch, jax = alignment.torch, alignment.jax
    here = torch.node(pair.torch)
    known = jax.classes.get(anchor.jax)
    near = [i for i in torch.operands(pair.torch) if torch.classes.get(i) == known]
    following = torch.trace.consumers().get(pair.torch, ())
    goes_on = any(_in_one_function(torch.node(i), here) for i in following)
    if goes_on and near and all(torch.node(i).source != here.source for i in near):
        return pair.jax
    return jax.unmoved(anchor.jax)


def _in_one_function(a: Node, b: Node) -> bool:
    first, second = a.source, b.source
    return (
        first is not None
        and second is not None
        and ((first.file, first.function) == (second.file, second.function))
    )


def _injected(
    alignment: Alignment,
    pair: Pair,
    setting: Setting,
    anchor: Anchor,
    torch: Trace,
    jax: JaxTrace,
) -> tuple[Finding, Trace]:
    """Go on with PyTorch's values at an anchor, for the same line in all layers."""
    finding = _described(alignment, pair)
    if anchor.lacking:
        finding = replace(
            finding,
            jax=explain.place_of(alignment.jax.node(_jax_place(alignment, pair, anchor))),
        )
        graph = anchor.injection.applied(jax.graph)
        after = changed(jax, graph)
        count = 1
    else:
        after, count = _given(alignment, jax, anchor.torch, anchor.jax, anchor.order)
    return replace(finding, effect=_effect(torch, jax, after), occurrences=count), after


def _replaced(
    alignment: Alignment, pair: Pair, jax: JaxTrace, outputs: Sequence[int]
) -> tuple[JaxTrace | None, int]:
    """Give PyTorch's values to the JAX side where both come together again after a pair."""
    meeting = _meeting(alignment, pair)
    if meeting is None:
        return None, 0
    after, count = _given(alignment, jax, *meeting)
    return (after, count) if count else (None, 0)


def _given(
    alignment: Alignment, jax: JaxTrace, a: int, b: int, order: tuple[int, ...]
) -> tuple[JaxTrace, int]:
    """Give PyTorch's values at one line to the JAX side, in all layers."""
    torch_nodes = [i for i in same_line(alignment.torch.trace, a) if i in alignment.torch.live]
    jax_nodes = [i for i in same_line(alignment.jax.trace, b) if i in alignment.jax.live]
    if len(torch_nodes) != len(jax_nodes):
        torch_nodes, jax_nodes = [a], [b]
    given = dict(jax.given)
    theirs = alignment.torch.trace.values(torch_nodes)
    count = 0
    for i, j in zip(torch_nodes, jax_nodes, strict=True):
        if i not in theirs or j in given:
            continue
        shape = jax.values([j])[j].shape  # complex numbers are pairs
        x = theirs[i]
        given[j] = x.transpose(order).reshape(shape) if order else x.reshape(shape)
        count += 1
    return changed(jax, given=given), count


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
    return finding, changed(jax, given=given)
