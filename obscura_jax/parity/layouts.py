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
    for i in torch.node(pair.torch).inputs:
        for j in jax.node(pair.jax).inputs:
            if i not in torch.classes or torch.classes[i] != jax.classes.get(j):
                continue
            mine, other = _chain(torch, i), _chain(jax, j)
            theirs, ours = torch.trace.values(mine), jax.trace.values(other)
            if len(theirs) < len(mine) or len(ours) < len(other):
                continue
            if arrangement(theirs[mine[-1]], ours[other[-1]]) is not None:
                continue
            if arrangement(theirs[mine[0]], ours[other[0]]) is None:
                continue
            a = next(k for k in mine if arrangement(theirs[k], ours[other[-1]]) is None)
            wrong = [k for k in other if arrangement(theirs[mine[0]], ours[k]) is None]
            if not wrong:
                continue
            last = next((k for k in mine[1:] if _moves(torch, k)), mine[-1])
            return torch.node(last if a == mine[0] else a), jax.node(wrong[0])
    return None


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
