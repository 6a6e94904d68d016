"""Bring the gradients of two programs into one order, by the values of their parameters."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.relation import arrangement, rms

Array = NDArray[Any]
_CLOSE = 1e-6  # relative difference of values that are the same but for rounding to float32
_FEW_AXES = 6


def in_one_order(
    theirs: Sequence[tuple[Array, Array]], ours: Sequence[tuple[Array, Array]], copies: bool
) -> tuple[Array, Array] | None:
    """Return the gradients of both sides in one order, or None if there is no such order.

    Args:
        theirs: values and gradient of each parameter of the PyTorch side.
        ours: those of the JAX side.
        copies: whether each parameter has all the values; then the gradients of a side add up.
    """
    if copies:
        reference = ours[0][0]
        sums = []
        for side in (theirs, ours):
            gradients = [_arranged(x, gradient, reference) for x, gradient in side]
            if any(gradient is None for gradient in gradients):
                break
            sums.append(np.sum(np.stack([g for g in gradients if g is not None]), axis=0))
        else:
            return sums[0], sums[1]
        if len(theirs) > 1 or len(ours) > 1:
            return None
    return _sorted(theirs, ours)


def _arranged(values: Array, gradient: Array, reference: Array) -> Array | None:
    """Return a gradient with its axes in the order that turns its values into a reference."""
    if values.size != reference.size:
        return None
    axes = order_of_axes(values, reference)
    if axes is None:
        return None
    return gradient.transpose(axes).reshape(reference.shape)


def order_of_axes(theirs: Array, ours: Array) -> tuple[int, ...] | None:
    """Return the order of axes that turns one array, of any size, into another, or None."""
    return arrangement(theirs, ours, _CLOSE, few=_FEW_AXES, large=None)


def _sorted(
    theirs: Sequence[tuple[Array, Array]], ours: Sequence[tuple[Array, Array]]
) -> tuple[Array, Array] | None:
    """Return both gradients in the order of the values; entries of equal values, in their own.

    The entries of value 0 are left out if one side has more of them, as padding has.
    """
    found = []
    for side in (theirs, ours):
        values = np.concatenate([x.reshape(-1).astype(np.float64) for x, _ in side])
        gradients = np.concatenate([gradient.reshape(-1) for _, gradient in side])
        found.append((values, gradients))
    if found[0][0].size != found[1][0].size:
        found = [(values[values != 0], gradients[values != 0]) for values, gradients in found]
    if found[0][0].size != found[1][0].size or not found[0][0].size:
        return None
    orders = [np.lexsort((gradients, values)) for values, gradients in found]
    (x, theirs_sorted), (y, ours_sorted) = (
        (values[order], gradients[order])
        for (values, gradients), order in zip(found, orders, strict=True)
    )
    if np.abs(x - y).max() > _CLOSE * rms(x):
        return None
    return theirs_sorted, ours_sorted
