"""Find which parameters and inputs of two programs are the same, by their values and their use.

A parameter of one program may be a part of one, several parts, or a copy in the other program.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.align import Alignment, Side
from obscura_jax.parity.relation import share

_SAMPLE = 256
_DEPTH = 6  # operations between a parameter and the first value that both programs have


@dataclass(frozen=True)
class Twins:
    """Parameters with the same values.

    Attributes:
        torch: leaves of the PyTorch side.
        jax: leaves of the JAX side.
        copies: whether each of them has all the values, so that gradients add up. Otherwise the
            values of each side together are those of the other.
    """

    torch: tuple[int, ...]
    jax: tuple[int, ...]
    copies: bool = True


@dataclass
class Matching:
    """The parameters that both programs have.

    Attributes:
        twins: the pairs and groups.
        unclear: names of parameters that have equal values and could not be told from each other.
    """

    twins: list[Twins] = field(default_factory=list)
    unclear: list[str] = field(default_factory=list)


def match_parameters(
    alignment: Alignment, torch_leaves: Sequence[int], jax_leaves: Sequence[int]
) -> Matching:
    """Return the parameters that are the same.

    Args:
        alignment: the values of both programs.
        torch_leaves: parameters and inputs of the PyTorch side.
        jax_leaves: those of the JAX side.
    """
    found = Matching()
    uses = _Uses(alignment.torch), _Uses(alignment.jax)
    torch, jax = _telling(alignment.torch, torch_leaves), _telling(alignment.jax, jax_leaves)
    for key in torch.keys() & jax.keys():
        pairs, mine, other = _by_use(uses, torch.pop(key), jax.pop(key))
        found.twins += pairs
        if mine and other:
            found.twins.append(Twins(tuple(mine), tuple(other)))
    rest = (
        [i for group in torch.values() for i in group],
        [i for group in jax.values() for i in group],
    )
    found.twins += _joined(alignment, *rest)
    torch, jax = _plain(alignment.torch, torch_leaves), _plain(alignment.jax, jax_leaves)
    for key in torch.keys() & jax.keys():
        pairs, mine, other = _by_use(uses, torch[key], jax[key])
        if len(mine) == len(other) == 1:
            pairs.append(Twins((mine[0],), (other[0],)))
        elif mine and other:
            found.unclear += [alignment.torch.node(i).name for i in mine]
        found.twins += pairs
    found.twins.sort(key=lambda twins: twins.torch)
    return found


def _telling(side: Side, leaves: Iterable[int]) -> dict[int, list[int]]:
    """Return the leaves whose values tell them apart, by class."""
    groups: dict[int, list[int]] = {}
    for i in leaves:
        if i in side.classes:
            groups.setdefault(side.classes[i], []).append(i)
    return groups


def _plain(side: Side, leaves: Iterable[int]) -> dict[Any, list[int]]:
    """Return the other leaves, such as biases of zeros, by their values and size."""
    groups: dict[Any, list[int]] = {}
    for i in leaves:
        node = side.node(i)
        if i not in side.classes and (p := node.print) is not None:
            key = (node.size, p.kind, p.count, f"{p.value:.6g}", f"{p.rms:.6g}")
            groups.setdefault(key, []).append(i)
    return groups


class _Uses:
    """The first values computed from a leaf that both programs have."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._consumers = side.trace.consumers()

    def __call__(self, leaf: int) -> set[int]:
        """Return the classes of these values."""
        side, found = self._side, set()
        own = side.classes.get(leaf)
        level = {leaf}
        for _ in range(_DEPTH):
            following: set[int] = set()
            for i in level:
                for j in self._consumers.get(i, ()):
                    known = side.classes.get(j)
                    if known is not None and known != own and j in side.matched:
                        found.add(known)
                    else:
                        following.add(j)
            level = following
        return found


def _by_use(
    uses: tuple[_Uses, _Uses], torch: list[int], jax: list[int]
) -> tuple[list[Twins], list[int], list[int]]:
    """Return the pairs of leaves with the same use, and the other leaves of each side."""
    if len(torch) == len(jax) == 1:
        return [Twins((torch[0],), (jax[0],))], [], []
    mine = {i: uses[0](i) for i in torch}
    other = {j: uses[1](j) for j in jax}
    pairs = []
    for i in torch:
        likely = [j for j in other if mine[i] & other[j]]
        if len(likely) == 1 and sum(bool(mine[k] & other[likely[0]]) for k in mine) == 1:
            pairs.append(Twins((i,), (likely[0],)))
            del other[likely[0]], mine[i]
    return pairs, list(mine), list(other)


def _joined(alignment: Alignment, torch: list[int], jax: list[int]) -> list[Twins]:
    """Return groups of leaves whose values together are the same on both sides."""
    values = (
        _sorted_values(alignment.torch, torch),
        _sorted_values(alignment.jax, jax),
    )
    found = []
    for least in (0.95, 0.02):
        for mine, other in _components(*values, least):
            left = np.sort(np.concatenate([values[0][i] for i in mine]))
            right = np.sort(np.concatenate([values[1][j] for j in other]))
            if left.size == right.size and np.allclose(left, right, 1e-6, 0):
                found.append(Twins(tuple(mine), tuple(other), copies=False))
                for i in mine:
                    del values[0][i]
                for j in other:
                    del values[1][j]
    return found


def _sorted_values(side: Side, leaves: Iterable[int]) -> dict[int, NDArray[Any]]:
    found = side.trace.values(leaves)
    return {i: np.sort(x[x != 0].astype(np.float64), axis=None) for i, x in found.items()}


def _components(
    torch: dict[int, NDArray[Any]], jax: dict[int, NDArray[Any]], least: float
) -> list[tuple[list[int], list[int]]]:
    """Return the groups of leaves that share values.

    Args:
        torch: sorted values of the leaves of the PyTorch side.
        jax: those of the JAX side.
        least: share of the values of one leaf that another one must have too.
    """
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for i, x in torch.items():
        for j, y in jax.items():
            if max(_share(x, y), _share(y, x)) >= least:
                parent[root(("torch", i))] = root(("jax", j))
    groups: dict[Any, tuple[list[int], list[int]]] = {}
    for key in list(parent):
        groups.setdefault(root(key), ([], []))[key[0] == "jax"].append(key[1])
    return [(sorted(mine), sorted(other)) for mine, other in groups.values()]


def _share(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Return the share of a sample of the values `x` that are among the sorted values `y`."""
    return share(x[:: max(x.size // _SAMPLE, 1)], y)
