"""Continue a JAX program with PyTorch's values where both hold the same quantity again."""

from obscura_jax.parity.align import Alignment, Pair
from obscura_jax.parity.gates import gates
from obscura_jax.parity.jax_trace import JaxTrace, changed
from obscura_jax.parity.parallel import same_line
from obscura_jax.parity.relation import arrangements, correlation


def with_meeting(alignment: Alignment, pair: Pair, jax: JaxTrace) -> tuple[JaxTrace | None, int]:
    """Give PyTorch's values to the JAX side where both come together again after a pair."""
    meeting = _meeting(alignment, pair)
    if meeting is None:
        return None, 0
    after, count = with_given(alignment, jax, *meeting)
    return (after, count) if count else (None, 0)


def with_given(
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
