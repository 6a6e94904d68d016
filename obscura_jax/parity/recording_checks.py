"""Check that a recording fits the other side of a comparison, and say what it does not allow."""

from collections.abc import Iterable

from obscura_jax.parity.findings import Output
from obscura_jax.parity.fingerprint import close
from obscura_jax.parity.program import NotComparableError
from obscura_jax.parity.recording import Recording
from obscura_jax.parity.trace import Trace

_ROUNDED = 1e-6  # a difference of outputs that a rounded constant can make
_CLOSE = 1e-6  # one side may have been given inputs of lower precision


def check_recordings(torch: Trace, jax: Trace) -> None:
    """Check the recordings among two sides, if any.

    Raises:
        ValueError: if a recording is given as the side that it does not record.
        NotComparableError: if it was made with other inputs than the other side's.
    """
    for trace, side in ((torch, "PyTorch"), (jax, "JAX")):
        if isinstance(trace, Recording) and trace.side != side:
            raise ValueError(
                f"{trace.path} is a recording of a {trace.side} program, but is given as the "
                f"{side} side; give it as the {trace.side} side"
            )
    recording = next((trace for trace in (torch, jax) if isinstance(trace, Recording)), None)
    if recording is None:
        return
    theirs, ours = _inputs_of_one(torch, jax), _inputs_of_one(jax, torch)
    if theirs and ours:
        i = theirs[0]
        size = torch.nodes[i].size
        j = next((j for j in ours if jax.nodes[j].size == size), ours[0])
        first, second = _words(torch, i), _words(jax, j)
        raise NotComparableError(
            f"the recording {recording.path} was made with other inputs: {first} and {second} have "
            "different values; record it again with the inputs of the other side"
        )


def recording_notes(torch: Trace, jax: Trace, outputs: Iterable[Output]) -> tuple[str, ...]:
    """Return what a reader should know of the recordings among two sides, if any."""
    found = []
    for trace in (torch, jax):
        if isinstance(trace, Recording):
            package = "torch" if trace is torch else "jax"
            found.append(
                f"the {trace.side} side is a recording, made with {package} "
                f"{trace.versions.get(package, 'of an unknown version')}"
            )
    if isinstance(jax, Recording):
        found[-1] += (
            "; it cannot be changed and run again, so that at most one place is reported, and no "
            "change that makes both equal"
        )
        if 0 < max((x.float64 for x in outputs if not x.equal), default=0) < _ROUNDED:
            found.append(
                "a constant that one side rounds to float32 would explain a difference as small "
                "as this one; compare with the JAX program itself to find out"
            )
    return tuple(found)


def _inputs_of_one(side: Trace, other: Trace) -> list[int]:
    """Return the inputs of one side whose values are in no input or constant of the other side.

    Masks are left out, because the other side may store the same mask as other numbers.
    """
    leaves = [p for node in other.nodes if node.leaf and (p := node.print) is not None]
    return [
        i
        for i in side.inputs
        if (print_ := side.nodes[i].print) is not None
        and print_.kind in ("numbers", "constant")
        and not any(close(print_, p, _CLOSE) for p in leaves)
    ]


def _words(side: Trace, index: int) -> str:
    node = side.nodes[index]
    return f"{side.side}'s {node.name} of shape {node.shape}"
