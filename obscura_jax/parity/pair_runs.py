"""Compare the two programs of a pair file, or record one of them in a file."""

from pathlib import Path
from typing import Any

from obscura_jax.parity.findings import Report
from obscura_jax.parity.pair_file import SIDES, load_pair
from obscura_jax.parity.side_errors import failure_of

_NAMES = {"torch": "PyTorch", "jax": "JAX"}  # of the sides of a trace


def compare_pair(
    path: str, against: str | None = None, *, gradients: bool = True, operations: bool = False
) -> Report:
    """Compare the two programs of a pair file.

    Args:
        path: the file; see `load_pair`.
        against: a file that `record_side` wrote. It replaces the side that it records, which the
            pair file then need not define.
        gradients: whether to compare gradients.
        operations: whether the report lists every operation.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if the pair file or one of its programs fails; the message is one sentence.
    """
    from obscura_jax.parity.compare_programs import compare

    given: dict[str, Any] = {}
    if against is not None:
        recorded = _recording(against)
        given = {side: recorded for side in SIDES if _NAMES[side] == recorded.side}
    pair = load_pair(path, [side for side in SIDES if side not in given])
    torch_side = given["torch"] if "torch" in given else pair.torch()
    jax_side = given["jax"] if "jax" in given else pair.jax()
    with pair.guest(failure_of):
        return compare(torch_side, jax_side, gradients=gradients, operations=operations)


def record_side(path: str, side: str, target: str) -> None:
    """Run one side of a pair file, "torch" or "jax", and write its trace to the file `target`.

    Raises:
        FileNotFoundError: if the pair file is missing.
        ValueError: if the pair file or that side fails, or `target` cannot be written.
    """
    from obscura_jax.parity.recording import record

    pair = load_pair(path, [side])
    program = pair.torch() if side == "torch" else pair.jax()
    target = str(Path(target).resolve())  # the program may change the working directory
    with pair.guest(failure_of):
        record(program, target)


def _recording(name: str) -> Any:
    from obscura_jax.parity.recording import read

    if not Path(name).is_file():
        raise FileNotFoundError(
            f"--against takes a recording of one side if the source is a pair of programs, but "
            f"there is no file {name}; write one with --record"
        )
    return read(name)
