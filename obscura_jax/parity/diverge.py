"""Find one place after another at which two programs part.

After each finding, the JAX program continues with the values that it should have computed: by a
mend if one is known, else with PyTorch's values. So a second difference is not hidden by the first.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from obscura_jax.parity import explain
from obscura_jax.parity.align import Alignment, Pair, align, first_pairs
from obscura_jax.parity.anchors import Anchor, anchors
from obscura_jax.parity.findings import Finding, Mend
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_trace import JaxTrace, changed
from obscura_jax.parity.layouts import blamed_layout
from obscura_jax.parity.meeting import with_given, with_meeting
from obscura_jax.parity.mend import Repair, find_mend
from obscura_jax.parity.mend_places import jax_place, mended_places
from obscura_jax.parity.outputs import differing, effect
from obscura_jax.parity.relation import TOLERANCE, apart
from obscura_jax.parity.rounded_constants import float32_twins, with_exact_constants
from obscura_jax.parity.setting import Effort, Setting
from obscura_jax.parity.trace import Trace

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
        jax, constants = with_exact_constants(found.alignment, jax)
        found.jax = jax
        found.findings += constants
    elif differing(torch, jax) and any(float32_twins(found.alignment.torch, found.alignment.jax)):
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
    located: tuple[Pair, tuple[Anchor, ...]] | None = None
    for pair in pairs[:_PAIRS]:
        own = Effort(min(_EFFORT, effort.left))
        effort.left -= own.left
        setting = Setting.around(alignment, pair, jax, gates(alignment.jax, pair.jax), own)
        found = tuple(islice(anchors(setting), _ANCHORS))
        known = located is not None and _nodes(found) == _nodes(located[1])
        repair = None if known else find_mend(setting, found)  # it would have been found before
        effort.left += own.left
        if repair is not None:
            return _mended(alignment, pair, repair, torch, jax)
        if found and located is None:
            located = pair, found
    if located is not None:
        pair, found = located
        return _injected(alignment, pair, found[0], torch, jax)
    pair = pairs[0]
    finding = _described(alignment, pair)
    after, count = with_meeting(alignment, pair, jax)
    if after is None:
        return finding, None
    return replace(finding, effect=effect(torch, jax, after), occurrences=count), after


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
    finding, after = _described(alignment, pair), changed(jax, repair.graph)
    theirs, ours = mended_places(alignment, pair, repair, finding, after)
    finding = replace(
        finding,
        torch=theirs,
        jax=explain.place_of(ours),
        mend=Mend(repair.change.kind, ours.source, repair.change.words),
        effect=effect(torch, jax, after),
        occurrences=repair.occurrences,
    )
    return finding, after


def _injected(
    alignment: Alignment, pair: Pair, anchor: Anchor, torch: Trace, jax: JaxTrace
) -> tuple[Finding, Trace]:
    """Continue with PyTorch's values at an anchor, for the same line in all layers."""
    finding = _described(alignment, pair)
    if anchor.lacking:
        finding = replace(
            finding,
            jax=explain.place_of(alignment.jax.node(jax_place(alignment, pair, anchor))),
        )
        after, count = changed(jax, anchor.injection.applied(jax.graph)), 1
    else:
        after, count = with_given(alignment, jax, anchor.torch, anchor.jax, anchor.order)
    return replace(finding, effect=effect(torch, jax, after), occurrences=count), after


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
