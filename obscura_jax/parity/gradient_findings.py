"""Find where two backward passes part, as places in both programs.

An operation of a backward pass leads to the value of the program whose gradient it continues. If
the other program has that value and computes no gradient through it, the gradient is lost there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from obscura_jax.parity import explain
from obscura_jax.parity.align import Alignment, Pair, Side, first_pairs
from obscura_jax.parity.backward import Backward
from obscura_jax.parity.backward_side import BackwardSide
from obscura_jax.parity.findings import Finding, Place
from obscura_jax.parity.lost_gradient import lost_gradient
from obscura_jax.parity.parameter_twins import Twins
from obscura_jax.parity.relation import relation

_MOST = 5


def find_gradient_divergences(
    alignment: Alignment, theirs: Backward, ours: Backward, different: Sequence[Twins]
) -> list[Finding]:
    """Return the places at which the backward passes part, those nearest to the output first.

    Args:
        alignment: the values of both passes.
        theirs: the backward pass of the PyTorch side.
        ours: that of the JAX side.
        different: the parameters whose gradients differ.
    """
    gradients = (
        [theirs.gradients[i] for twins in different for i in twins.torch if i in theirs.gradients],
        [ours.gradients[i] for twins in different for i in twins.jax if i in ours.gradients],
    )
    torch = BackwardSide(alignment.torch, theirs, gradients[0])
    jax = BackwardSide(alignment.jax, ours, gradients[1])
    first = torch.first_operations(), jax.first_operations()
    ends = _origins(alignment.torch, gradients[0]), _origins(alignment.jax, gradients[1])
    attempts = (
        lambda: [*_lost(torch, jax, *first), *_parted(alignment, torch, jax, *first, surely=True)],
        lambda: _lost(torch, jax, torch.all_following(first[0]), jax.all_following(first[1])),
        lambda: _lost(torch, jax, *ends),
        lambda: _additional(alignment, torch, jax, *first),
        lambda: _parted(alignment, torch, jax, *first, surely=False),
        lambda: (
            _Found(0, explain.finding_at(alignment, pair))
            for pair in first_pairs(alignment, *gradients)[:1]
        ),
    )
    found = next((some for attempt in attempts if (some := list(attempt()))), [])
    found.sort(key=lambda one: -one.position)
    return _distinct(found)


@dataclass(frozen=True)
class _Found:
    """A finding.

    Attributes:
        position: the position of its value in the PyTorch program.
        finding: the finding.
        lost: the place at which one program loses a gradient, if it does.
        node: the position of that place in its program.
    """

    position: int
    finding: Finding
    lost: tuple[Place, ...] = ()
    node: int = -1


def _origins(side: Side, gradients: Iterable[int]) -> list[int]:
    return sorted({side.origin(i) for i in gradients})


def _lost(
    torch: BackwardSide, jax: BackwardSide, torch_first: Iterable[int], jax_first: Iterable[int]
) -> Iterator[_Found]:
    """Yield the places at which one program alone has a gradient."""
    for i in torch_first:
        if (lost := lost_gradient(torch, jax, i)) is not None:
            finding = _lost_finding(torch, jax, lost.here, lost.there, lost.words)
            place = explain.place_of(jax.side.node(lost.there))
            yield _Found(lost.value, finding, (place,), lost.there)
    for j in jax_first:
        if (lost := lost_gradient(jax, torch, j)) is not None:
            position = max(torch.of_class(jax.side.classes[lost.value]), default=0)
            finding = _lost_finding(torch, jax, lost.there, lost.here, lost.words)
            place = explain.place_of(torch.side.node(lost.there))
            yield _Found(position, finding, (place,), lost.there)


def _lost_finding(
    torch: BackwardSide, jax: BackwardSide, here: int, there: int, words: str
) -> Finding:
    return Finding(
        "operation",
        explain.place_of(torch.side.node(here)),
        explain.place_of(jax.side.node(there)),
        relation=words,
    )


def _parted(
    alignment: Alignment,
    torch: BackwardSide,
    jax: BackwardSide,
    torch_first: Sequence[int],
    jax_first: Sequence[int],
    *,
    surely: bool,
) -> Iterator[_Found]:
    """Yield the pairs of operations that continue the gradient of one value in other ways."""
    others = [j for j in jax_first if jax.parts(j, surely)]
    for i in torch_first:
        if not torch.parts(i, surely):
            continue
        mine = torch.value_classes(i)
        pairs = []
        for j in others:
            overlap = _overlap(alignment, i, j)
            if mine & jax.value_classes(j) or (overlap and torch.is_hook(i)):
                pairs.append(Pair(i, j, overlap))
        if pairs:
            best = max(pairs, key=lambda pair: (pair.overlap, -pair.jax))
            position = max(torch.backward.forward.get(i, (0,)), default=0)
            finding = explain.finding_at(alignment, best)
            yield _Found(
                position,
                finding
                if finding.relation
                else replace(finding, relation=_relation_of_ends(torch, jax, best)),
            )


def _additional(
    alignment: Alignment,
    torch: BackwardSide,
    jax: BackwardSide,
    torch_first: Sequence[int],
    jax_first: Sequence[int],
) -> Iterator[_Found]:
    """Yield the operations by which one side adds to a gradient that both have."""
    pairs = [
        *((i, j) for i in torch_first for j in jax.ends_like(torch.value_classes(i))),
        *((i, j) for j in jax_first for i in torch.ends_like(jax.value_classes(j))),
    ]
    for i, j in pairs:
        if i in torch.side.settled or j in jax.side.settled:
            finding = explain.finding_at(alignment, Pair(i, j, 0.0))
            yield _Found(max(torch.backward.forward.get(i, (0,)), default=0), finding)


def _overlap(alignment: Alignment, torch: int, jax: int) -> float:
    """Return the share of operands that two operations have in common."""
    mine, other = alignment.torch.operand_classes(torch), alignment.jax.operand_classes(jax)
    return len(mine & other) / max(len(mine | other), 1)


def _relation_of_ends(torch: BackwardSide, jax: BackwardSide, pair: Pair) -> str:
    """Return how the gradients relate that the backward passes of one operation return, or ""."""
    a, b = torch.end_of(pair.torch), jax.end_of(pair.jax)
    theirs, ours = torch.side.trace.values([a]), jax.side.trace.values([b])
    found = relation(theirs[a], ours[b])
    return f"gradients: {found.words}" if found is not None else ""


def _distinct(found: Sequence[_Found]) -> list[Finding]:
    """Return the first findings, one for each pair of lines and for each lost gradient."""
    distinct: dict[object, Finding] = {}
    seen: set[object] = set()
    lost = {_lines(one.finding) for one in found if one.lost}
    for one in found:
        finding = one.finding
        if not one.lost and _lines(finding) in lost:
            continue
        key = (one.lost[0].source or one.lost) if one.lost else _lines(finding)
        first = distinct.setdefault(key, finding)
        place = (key, one.node)
        if first is not finding and not (one.lost and place in seen):
            distinct[key] = replace(first, occurrences=first.occurrences + 1)
        seen.add(place)
    return list(distinct.values())[:_MOST]


def _lines(finding: Finding) -> tuple[object, ...]:
    return tuple(place and (place.source or place) for place in (finding.torch, finding.jax))
