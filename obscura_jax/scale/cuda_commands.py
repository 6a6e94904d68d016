"""Commands that a GPU executes per generated token, counted in the plan of XLA:GPU.

XLA writes the plan, its "thunk sequence", when it compiles: one line per operation, indented below
the CUDA graph, loop or branch that contains it. The optimized HLO has no graphs. The text has no
stable grammar; this module was written for jaxlib 0.10.2.
"""

import re
import tempfile
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_OPERATION = re.compile(r"( *)\d+: (k\w+)")
_LABEL = re.compile(r"( *)(\w+):\s*$")
_PLANS = ("*.thunk_sequence_after_thunk_passes.txt", "*.thunk_sequence.txt")  # with graphs, without
COMMAND_SECONDS = (2e-6, 3e-6)  # one small kernel in a CUDA graph that waits for the one before
_GRAPH, _LOOP, _BRANCH = "kCommandBuffer", "kWhile", "kConditional"


@dataclass(frozen=True)
class Commands:
    """Counts per generated token.

    Attributes:
        commands: kernels, copies and library calls. The nodes of a graph that decide on a loop or
            a branch are not counted.
        graphs: CUDA graphs that the host launches. A graph that contains the loop over tokens is
            launched once for all of them, and is not counted.
        host_returns: conditions of loops and branches that the host reads from the GPU.
        inner_loops: loops within the token. Each counts as one iteration.
    """

    commands: int = 0
    graphs: int = 0
    host_returns: int = 0
    inner_loops: int = 0

    def __add__(self, other: "Commands") -> "Commands":
        return Commands(
            self.commands + other.commands,
            self.graphs + other.graphs,
            self.host_returns + other.host_returns,
            self.inner_loops + other.inner_loops,
        )


@dataclass(frozen=True)
class TokenCommands:
    """Counts for the cheapest branches (greedy decoding) and the most expensive ones (sampling)."""

    least: Commands
    most: Commands


@dataclass
class _Operation:
    """A line of the plan, with the operations below each of its labels ("" before the first)."""

    kind: str
    indent: int
    parts: list[list["_Operation"]] = field(default_factory=lambda: [[]])


def compile_with_plan(lowered: Any, options: dict[str, Any] | None = None) -> tuple[Any, str]:
    """Compile a program for CUDA, and return it with the text of its plan.

    Args:
        lowered: the `jax.stages.Lowered` of one program for CUDA devices.
        options: XLA options for this compilation, in addition to those of `jax.jit`.

    Raises:
        ValueError: if XLA writes no plan.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # JAX can write this program to its cache, but cannot read it without a GPU: then it
        # compiles again, and XLA writes the plan.
        warnings.filterwarnings("ignore", ".*persistent compilation cache")
        compiled = lowered.compile(compiler_options={**(options or {}), "xla_dump_to": folder})
        plans = [path.read_text() for name in _PLANS for path in Path(folder).glob(name)]
    if not plans:
        raise ValueError("XLA wrote no plan of commands; compile for CUDA with jaxlib 0.10.2")
    return compiled, plans[0]


def commands_per_token(plan: str) -> TokenCommands:
    """Count the commands of one iteration of a program's longest loop, and of its condition.

    Args:
        plan: the text from `compile_with_plan` of a decode program.

    Raises:
        ValueError: if the program has no loop.
    """
    loops = _outer_loops(_parse(plan), in_graph=False)
    if not loops:
        raise ValueError("the program has no loop; give the plan of a decode program")
    counts = [
        TokenCommands(_count(loop, in_graph, min), _count(loop, in_graph, max))
        for loop, in_graph in loops
    ]
    longest = max(counts, key=lambda count: count.most.commands)
    one = Commands(inner_loops=-1)  # the loop over tokens is not within a token
    return TokenCommands(longest.least + one, longest.most + one)


def launch_report(plan: str, roofline: dict[str, Any]) -> dict[str, Any]:
    """Report whether the commands of a token, or the work in them, take longer.

    Args:
        plan: the text from `compile_with_plan` of a decode program.
        roofline: the shortest times of one token, from `roofline.roofline`.

    Returns:
        A dictionary for JSON: the counts of a `greedy` token and of one with `sampling`, both as
        in `Commands`; the `seconds` that the commands of a greedy token take if they hardly do any
        work, lowest and highest; and `bound`, which is "launch" if the mean of the two is longer
        than the time of the slowest resource, and otherwise that resource.
    """
    count = commands_per_token(plan)
    low, high = (count.least.commands * seconds for seconds in COMMAND_SECONDS)
    return {
        "greedy": asdict(count.least),
        "sampling": asdict(count.most),
        "seconds": (low, high),
        "bound": "launch" if (low + high) / 2 > roofline["seconds"] else roofline["bound"],
    }


def _parse(plan: str) -> _Operation:
    """Return the operations of a plan as a tree."""
    root = _Operation("", -1)
    above = [root]
    for line in plan.splitlines():
        if match := _LABEL.match(line):
            # XLA does not indent the label of a loop's condition, which follows the loop's line.
            while match[2] != "condition" and above[-1].indent >= len(match[1]):
                above.pop()
            above[-1].parts.append([])
        elif match := _OPERATION.match(line):
            operation = _Operation(match[2], len(match[1]))
            while above[-1].indent >= operation.indent:
                above.pop()
            above[-1].parts[-1].append(operation)
            above.append(operation)
    return root


def _outer_loops(operation: _Operation, in_graph: bool) -> list[tuple[_Operation, bool]]:
    """Return the loops that are not within another, and whether each is part of a graph."""
    found = []
    for inner in (inner for part in operation.parts for inner in part):
        if inner.kind == _LOOP:
            found.append((inner, in_graph))
        else:
            found += _outer_loops(inner, in_graph or inner.kind == _GRAPH)
    return found


def _count(operation: _Operation, in_graph: bool, choose: Any) -> Commands:
    """Count an operation and those below it; `choose` is min or max over branches."""
    graph = operation.kind == _GRAPH
    parts = [
        sum((_count(inner, in_graph or graph, choose) for inner in part), Commands())
        for part in operation.parts
    ]
    if operation.kind == _BRANCH:
        chosen = choose(parts[1:], key=lambda count: count.commands, default=Commands())
        return chosen + Commands(host_returns=not in_graph)
    total = sum(parts, Commands())
    if operation.kind == _LOOP:
        return total + Commands(host_returns=not in_graph, inner_loops=1)
    if graph:
        return total + Commands(graphs=not in_graph)
    is_command = not any(operation.parts) and not operation.kind.endswith("Done")
    return total + Commands(commands=is_command)
