"""Describe in words where two programs part: operands that both use, and how results relate."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Alignment, Pair, Side
from obscura_jax.parity.findings import Finding, Place
from obscura_jax.parity.fingerprint import LEAST
from obscura_jax.parity.relation import relation, share
from obscura_jax.parity.sources import line_of
from obscura_jax.parity.trace import Node

Array = NDArray[Any]


def place_of(node: Node) -> Place:
    """Return a node as a place in a report."""
    return Place(
        node.name if node.leaf else node.op,
        node.fused,
        node.source,
        line_of(node.source),
        node.path,
        tuple(node.shape),
    )


def described(side: Side, index: int) -> str:
    """Return a value in a few words: the name of a leaf, or an operation and its line."""
    node = side.node(index)
    if node.leaf:
        if node.name in ("constant", "literal"):
            value = f" {node.numbers[0]:g}" if node.numbers else f" of shape {node.shape}"
            return f"the {node.name}{value}"
        return node.name
    where = f" at {node.source}" if node.source else ""
    return f"{node.fused or node.op}{where}"


def operand_differences(
    alignment: Alignment, pair: Pair
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the operands that both sides use, those of PyTorch alone, and those of JAX alone."""
    torch, jax = alignment.torch, alignment.jax
    mine, other = torch.operand_classes(pair.torch), jax.operand_classes(pair.jax)

    def words(side: Side, index: int, classes: set[int]) -> tuple[str, ...]:
        found = (i for i in side.operands(index) if side.classes.get(i) in classes)
        return tuple(dict.fromkeys(described(side, i) for i in found))

    return (
        words(torch, pair.torch, mine & other),
        words(torch, pair.torch, mine - other),
        words(jax, pair.jax, other - mine),
    )


def relation_words(alignment: Alignment, pair: Pair) -> str:
    """Return how the results, or else operands without a match, of a pair relate, or ""."""
    torch, jax = alignment.torch, alignment.jax
    mine = [i for i in torch.operands(pair.torch) if not _settled(torch, i)]
    other = [i for i in jax.operands(pair.jax) if not _settled(jax, i)]
    ours = jax.trace.values([pair.jax, *other])
    theirs = torch.trace.values([pair.torch, *mine])
    for i in mine:
        for j in other:
            if i in theirs and j in ours and (found := relation(theirs[i], ours[j])):
                return f"operand {described(jax, j)}: {found.words}"
    if pair.torch in theirs and pair.jax in ours:
        found = relation(theirs[pair.torch], ours[pair.jax])
        if found is not None:
            return f"results: {found.words}"
    return ""


def finding_at(alignment: Alignment, pair: Pair) -> Finding:
    """Return the finding that two operations differ."""
    return Finding(
        "operation",
        place_of(alignment.torch.node(pair.torch)),
        place_of(alignment.jax.node(pair.jax)),
        *operand_differences(alignment, pair),
        relation_words(alignment, pair),
    )


def _settled(side: Side, index: int) -> bool:
    node = side.node(index)
    return index in side.settled or node.leaf or not node.is_float or node.size < LEAST


def unmatched_leaves(side: Side, other: Side) -> list[int]:
    """Return the parameters and constants whose values are nowhere on the other side.

    A part or a combination of the other side's parameters counts as found.
    """
    candidates = [
        i
        for i in sorted(side.live)
        if side.node(i).leaf and side.is_strong(i) and i not in side.matched
    ]
    lonely = [
        i
        for i in other.live
        if other.node(i).leaf and other.is_strong(i) and i not in other.matched
    ]
    if not candidates:
        return []
    values = other.trace.values(lonely)
    if len(values) < len(lonely):
        return []  # a recording lacks the values among which they may be
    pool = np.sort(np.concatenate([np.zeros(1), *(x.reshape(-1) for x in values.values())]))
    found = []
    for i, x in side.trace.values(candidates).items():
        sample = x.reshape(-1)[:64].astype(np.float64)
        sample = sample[sample != 0]
        if share(sample, pool) < 0.9:
            found.append(i)
    return found
