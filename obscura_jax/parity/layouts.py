"""Find the layout operation that arranges equal values in different ways.

Sorted values do not show how entries are arranged, so heads that are split in another order show
at the next product. Then the reshapes and transposes before the product are to blame.
"""

from obscura_jax.parity.align import Alignment, Pair, Side
from obscura_jax.parity.relation import arrangement
from obscura_jax.parity.trace import Node


def blamed_layout(alignment: Alignment, pair: Pair) -> tuple[Node, Node] | None:
    """Return the layout operations of both sides that arrange an operand of a pair differently."""
    torch, jax = alignment.torch, alignment.jax
    mine, other = torch.node(pair.torch).inputs, jax.node(pair.jax).inputs
    if _classes(torch, mine) != _classes(jax, other):
        return None
    return _blamed_operands(alignment, mine, other)


def _classes(side: Side, indices: tuple[int, ...]) -> set[int]:
    return {side.classes[i] for i in indices if side.is_strong(i)}


def _blamed_operands(
    alignment: Alignment, mine: tuple[int, ...], other: tuple[int, ...]
) -> tuple[Node, Node] | None:
    torch, jax = alignment.torch, alignment.jax
    for i in mine:
        for j in other:
            if i in torch.classes and torch.classes[i] == jax.classes.get(j):
                found = _blamed(alignment, i, j)
                if found is not None:
                    return found
    return None


def _blamed(alignment: Alignment, i: int, j: int) -> tuple[Node, Node] | None:
    """Return the layout operations that arrange the values of two nodes differently."""
    torch, jax = alignment.torch, alignment.jax
    mine, other = _chain(torch, i), _chain(jax, j)
    theirs, ours = torch.trace.values(mine), jax.trace.values(other)
    if len(theirs) < len(mine) or len(ours) < len(other):
        return None
    if arrangement(theirs[mine[-1]], ours[other[-1]]) is not None:
        return None
    if arrangement(theirs[mine[0]], ours[other[0]]) is None:
        a, b = torch.node(mine[0]), jax.node(other[0])
        if not (a.layout and b.layout):
            return None
        return _blamed_operands(alignment, a.inputs, b.inputs) or (a, b)
    wrong = [k for k in other if arrangement(theirs[mine[0]], ours[k]) is None]
    if not wrong:
        return None
    last = next((k for k in mine[1:] if _moves(torch, k)), mine[-1])
    own = next(k for k in mine if arrangement(theirs[k], ours[other[-1]]) is None)
    return torch.node(last if own == mine[0] else own), jax.node(wrong[0])


def _chain(side: Side, index: int) -> list[int]:
    """Return the layout operations that lead to a value, from their origin to the value."""
    found = [index]
    node = side.node(index)
    while node.layout and node.permutes and node.inputs:
        node = side.node(node.inputs[0])
        found.append(node.index)
    return found[::-1]


def _moves(side: Side, index: int) -> bool:
    return side.node(index).op not in ("clone", "contiguous", "alias", "detach", "_to_copy")
