"""Compare the outputs of two programs."""

import numpy as np

from obscura_jax.parity.relation import OUTPUT, TOLERANCE, apart, rms
from obscura_jax.parity.trace import Trace


def differing(torch: Trace, jax: Trace, tolerance: float = TOLERANCE) -> list[int]:
    """Return the positions of the outputs that are not equal in float64."""
    theirs, ours = torch.values(torch.outputs), jax.values(jax.outputs)
    return [
        n
        for n, (a, b) in enumerate(zip(torch.outputs, jax.outputs, strict=True))
        if theirs[a].shape != ours[b].shape or apart(theirs[a], ours[b]) > OUTPUT * tolerance
    ]


def effect(torch: Trace, before: Trace, after: Trace) -> float:
    """Return how much the outputs changed, relative to their rms."""
    theirs = torch.values(torch.outputs)
    old, new = before.values(before.outputs), after.values(after.outputs)
    changes = [0.0]
    for a, b in zip(torch.outputs, before.outputs, strict=True):
        finite = np.isfinite(old[b]) & np.isfinite(new[b])
        change = np.abs(old[b].astype(np.float64) - new[b])[finite].max(initial=0.0)
        changes.append(float(change) / (rms(theirs[a]) or 1.0))
    return max(changes)
