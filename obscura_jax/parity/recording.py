"""Record the trace of one program in a file, and read it where the program cannot run.

A recording is a safetensors file with a checksum. It holds every operation with its line of source
and its fingerprint, all outputs and inputs, and other values as far as `BUDGET` allows.
"""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from obscura_jax.atomic_files import require_path, write_atomically
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.json_report import versions
from obscura_jax.parity.program import JaxProgram, TorchProgram, name_of
from obscura_jax.parity.recording_format import FORMAT, packed, unpacked
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Trace
from obscura_jax.safetensors_files import read_safetensors, write_safetensors

BUDGET = 1 << 28  # bytes of values to store in addition to outputs and inputs
_LARGE_LEAF = 1 << 16  # bytes of a parameter that is stored only if all results are
_NAME = "obscura_jax.parity.recording/"
_START = rb'.{8}\{"__metadata__":\{"format":"%s([^"]*)"' % _NAME.encode()  # of the file


@dataclass
class Recording(Trace):
    """A trace that was read from a file. It holds some values only, and cannot be run again.

    Attributes:
        path: the file.
        program: name of the program.
        versions: versions of Python and of the packages that ran it.
    """

    path: str = ""
    program: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def record(program: TorchProgram | JaxProgram, path: str | Path) -> None:
    """Run a program, and write its trace to a file.

    Raises:
        NotComparableError: if it returns no arrays, or different ones in two runs.
        ValueError: if the file cannot be written.
    """
    path = require_path(path)
    trace = trace_torch(program) if isinstance(program, TorchProgram) else trace_jax(program)
    arrays = packed(trace, _values(trace), program=name_of(program.call), versions=versions())
    write = functools.partial(
        write_safetensors, tensors=arrays, metadata={"format": f"{_NAME}{FORMAT}"}
    )
    write_atomically(path, {path: write})


def read(path: str | Path) -> Recording:
    """Return the recording in a file, which takes the place of its program in `compare`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a recording, has another format, is cut short or is damaged.
    """
    path = Path(path)
    _check_format(path)
    try:
        trace, about = unpacked(read_safetensors(path))
        return Recording(**vars(trace), path=str(path), **about)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is cut short or damaged; record it again") from error


def _check_format(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(200)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {path}; write one with record()") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    found = re.match(_START, start, re.S)
    if found is None:
        raise ValueError(
            f"{path} is not a recording of a program; write one with record() or "
            "`obscura parity --record`"
        )
    if (number := found[1].decode("utf-8", "replace")) != FORMAT:
        raise ValueError(
            f"{path} is a recording of format {number}, and this version of obscura_jax reads "
            f"format {FORMAT}; record it again with this version"
        )


def _values(trace: Trace) -> dict[int, NDArray[Any]]:
    """Return the values to store: outputs, inputs, and small values before large ones."""
    always = [*trace.outputs, *trace.inputs]
    nodes = [trace.nodes[i] for i in sorted(trace.ancestors(trace.outputs).difference(always))]
    nodes.sort(key=lambda node: (node.leaf and 8 * node.size > _LARGE_LEAF, node.size))
    room, chosen = BUDGET, []
    for node in nodes:
        room -= 8 * node.size
        if room < 0:
            break
        chosen.append(node.index)
    return trace.values([*always, *chosen])
