"""A traced program: every operation with its source line, its operands and a fingerprint."""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.fingerprint import Fingerprint

KEPT_BYTES = 1 << 30  # values of a trace that are kept in memory
Values = Mapping[int, NDArray[Any]]


@dataclass(frozen=True)
class Source:
    """A line of a program.

    Attributes:
        file: path of the file.
        line: its number, from 1.
        function: name of the function that contains it.
        text: the line itself in a recording, whose file may be missing or changed; else "".
    """

    file: str
    line: int
    function: str = ""
    text: str = field(default="", compare=False, repr=False)

    def __str__(self) -> str:
        return f"{_short_name(self.file)}:{self.line}"


def _short_name(file: str) -> str:
    """Return the last part of a path, or the number of a notebook's cell, such as "In[4]"."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    cell = shell.compile.format_code_name(file) if shell else None
    return str(cell[1]) if cell else Path(file).name


@dataclass
class Node:
    """A value in a traced program: a leaf, or one output of an operation.

    Attributes:
        index: its position in the trace; operands come first.
        op: name of the operation; "leaf" for a parameter, an input or a constant.
        inputs: indices of the operands that are arrays.
        shape: shape of the value.
        dtype: its type as the program computes it, before all floats are lifted to float64.
        source: the line of the program, or None.
        path: module path (PyTorch) or name stack (JAX).
        name: name of a leaf, such as "norm.weight".
        layout: whether the operation only moves, copies, selects or repeats entries.
        permutes: whether it moves every entry of its first operand exactly once.
        fused: name of the fused kernel that the operation is a part of, or "".
        numbers: the Python floats among its arguments, such as an epsilon.
        lowered: type to which the program rounds this value, if lower than that of its operand.
        print: fingerprint of the value in float64.
    """

    index: int
    op: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    source: Source | None = None
    path: str = ""
    name: str = ""
    layout: bool = False
    permutes: bool = False
    fused: str = ""
    numbers: tuple[float, ...] = ()
    lowered: str = ""
    print: Fingerprint | None = None

    @property
    def leaf(self) -> bool:
        """True for a parameter, an input or a constant."""
        return self.op == "leaf"

    @property
    def is_float(self) -> bool:
        """True for real and complex numbers, whatever their precision."""
        return "float" in self.dtype or "complex" in self.dtype

    @property
    def size(self) -> int:
        """Number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))


class Fetch(Protocol):
    """Runs a program again and returns the values of some nodes."""

    def __call__(self, wanted: Iterable[int]) -> dict[int, NDArray[Any]]:
        """Return the values of the nodes `wanted`, in float64 where they are floats."""
        ...


@dataclass
class Trace:
    """One side of a comparison.

    Attributes:
        side: "PyTorch" or "JAX".
        nodes: all values, operands before results.
        outputs: indices of the values that the program returns.
        labels: a name for each output, such as "output 1" or "logits".
        inputs: indices of the leaves that are inputs of the program.
        parameters: indices of the leaves that are parameters.
        fetch: runs the program again for the values of some nodes; None for a recording.
        kept: values of nodes, as far as memory allows.
        native: the outputs in the program's own precision.
        random: the operations that draw random numbers.
        lines: for each node those of the same line; empty if not computed yet, see `parallel`.
        parallels: maps from one layer to another, see `parallel`.
    """

    side: str
    nodes: list[Node]
    outputs: list[int]
    labels: list[str]
    inputs: list[int]
    parameters: list[int]
    fetch: Fetch | None = None
    kept: dict[int, NDArray[Any]] = field(default_factory=dict)
    native: list[NDArray[Any]] = field(default_factory=list)
    random: list[int] = field(default_factory=list)
    lines: list[list[int]] = field(default_factory=list, repr=False)
    parallels: dict[tuple[int, int], Any] = field(default_factory=dict, repr=False)

    def values(self, wanted: Iterable[int]) -> dict[int, NDArray[Any]]:
        """Return the values of some nodes, from memory or by running the program again.

        A recording may lack some of them.
        """
        wanted = list(dict.fromkeys(wanted))
        lacking = [i for i in wanted if i not in self.kept]
        fetched = self.fetch(lacking) if lacking and self.fetch is not None else {}
        return {
            i: self.kept[i] if i in self.kept else fetched[i]
            for i in wanted
            if i in self.kept or i in fetched
        }

    def ancestors(self, of: Iterable[int]) -> set[int]:
        """Return the indices of all values that the values `of` depend on, with themselves."""
        found: set[int] = set()
        stack = list(of)
        while stack:
            i = stack.pop()
            if i not in found:
                found.add(i)
                stack += self.nodes[i].inputs
        return found

    def consumers(self) -> dict[int, list[int]]:
        """Return the nodes that use each node as an operand."""
        found: dict[int, list[int]] = {}
        for node in self.nodes:
            for i in node.inputs:
                found.setdefault(i, []).append(node.index)
        return found
