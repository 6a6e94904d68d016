"""Find constants that one of two programs rounds to float32."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity import explain
from obscura_jax.parity.align import Alignment, Side
from obscura_jax.parity.findings import Finding
from obscura_jax.parity.fingerprint import close
from obscura_jax.parity.jax_trace import JaxTrace, changed
from obscura_jax.parity.outputs import effect
from obscura_jax.parity.relation import apart, arrangements

_FLOAT32 = 2e-7  # the largest relative error of a number that was rounded to float32


def with_exact_constants(alignment: Alignment, jax: JaxTrace) -> tuple[JaxTrace, list[Finding]]:
    """Replace JAX's values that differ from PyTorch's only because one is rounded to float32."""
    torch_side, jax_side = alignment.torch, alignment.jax
    given, findings = dict(jax.given), []
    for a, b in float32_twins(torch_side, jax_side):
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
    change = effect(torch_side.trace, jax, after)
    return after, [replace(finding, effect=change) for finding in findings]


def float32_twins(torch: Side, jax: Side) -> Iterator[tuple[int, int]]:
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
