"""Find the operation of each program at which a mend is made, or one is lacking."""

from obscura_jax.parity.align import Alignment, Pair
from obscura_jax.parity.anchors import Anchor
from obscura_jax.parity.explain import place_of
from obscura_jax.parity.findings import Finding, Place
from obscura_jax.parity.fingerprint import close
from obscura_jax.parity.jax_trace import JaxTrace
from obscura_jax.parity.mend import Repair
from obscura_jax.parity.relation import arrangement
from obscura_jax.parity.trace import Node

_LAYOUTS = ("concat", "heads", "split", "position", "direction")


def mended_places(
    alignment: Alignment, pair: Pair, repair: Repair, finding: Finding, after: JaxTrace
) -> tuple[Place | None, Node]:
    """Return PyTorch's operation that counts for a mend, and the node of JAX that is mended.

    Args:
        alignment: the values of both sides.
        pair: the operations at which they part.
        repair: the mend.
        finding: the finding without the mend.
        after: the mended program.
    """
    change, anchor, jax = repair.change, repair.anchor, alignment.jax
    node = jax.node(
        change.line if change.line != anchor.jax else jax_place(alignment, pair, anchor)
    )
    theirs: Place | None = None
    if finding.kind == "arrangement":
        return finding.torch, node
    if change.kind in _LAYOUTS:
        theirs = _twin(alignment, change.line)
    elif not node.is_float:
        theirs = _integers_twin(alignment, pair, after, node.index)
    elif change.place is None and not anchor.lacking and not anchor.superfluous:
        theirs = _values_twin(alignment, after, node.index)
    return theirs or place_of(alignment.torch.node(_torch_place(alignment, pair, anchor))), node


def _twin(alignment: Alignment, index: int) -> Place | None:
    """Return PyTorch's operation with the values of a JAX layout operation, if it has one."""
    torch, jax = alignment.torch, alignment.jax
    if not jax.node(index).layout or not jax.is_strong(index):
        return None
    twins = [torch.node(i) for i in torch.by_class.get(jax.classes[index], ())]
    layouts = [node for node in twins if node.layout and not node.leaf]
    alike = [node for node in layouts if node.shape == jax.node(index).shape]
    return next((place_of(node) for node in (*alike, *layouts)), None)


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
            return place_of(torch.node(i))
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
    return next((place_of(torch.node(i)) for i in (*computed, *twins)), None)


def _torch_place(alignment: Alignment, pair: Pair, anchor: Anchor) -> int:
    """Return where PyTorch lacks an operation of JAX: the operation before, or the one after."""
    jax = alignment.jax
    before = anchor.operand if anchor.superfluous else None
    if before is not None and jax.node(before).source == jax.node(anchor.jax).source:
        return anchor.torch
    return pair.torch


def jax_place(alignment: Alignment, pair: Pair, anchor: Anchor) -> int:
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
