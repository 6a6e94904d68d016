"""Trace a JAX program, and evaluate it in float64."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.fingerprint import fingerprint
from obscura_jax.parity.jax_build import build_graph
from obscura_jax.parity.jax_graph import Graph, as_numpy
from obscura_jax.parity.jax_lift import is_plain
from obscura_jax.parity.jax_names import captured_names
from obscura_jax.parity.program import JaxProgram, NotComparableError, arrays_in, picked
from obscura_jax.parity.side_errors import running
from obscura_jax.parity.trace import KEPT_BYTES, Node, Trace

_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.NonConcreteBooleanIndexError,
)

_CHANGES_STATE = "TraceContextError"  # an exception of Flax NNX, which the engine does not import


@dataclass
class JaxTrace(Trace):
    """The trace of a JAX program, whose graph can be changed and evaluated again.

    Attributes:
        graph: the operations.
        given: values that stand in for those of nodes.
    """

    graph: Graph = field(default_factory=lambda: Graph([], [], {}, [], []))
    given: dict[int, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FlatProgram:
    """A JAX program as a function of its arrays that returns a list of arrays.

    Attributes:
        call: the function.
        arrays: the arrays among the program's inputs.
        names: a name for each of them.
        labels: a name for each output, as soon as `call` has run.
    """

    call: Callable[..., list[Any]]
    arrays: list[Any]
    names: list[str]
    labels: list[str]

    def shapes(self) -> list[Any]:
        """Return the shapes and the 32-bit types of the arrays."""
        return [_aval(x) for x in self.arrays]


def flattened(program: JaxProgram) -> FlatProgram:
    """Return a program as a function of its arrays.

    The function raises a NotComparableError if the program returns no arrays.
    """
    leaves, tree = jax.tree_util.tree_flatten((program.args, program.kwargs))
    dynamic = [n for n, x in enumerate(leaves) if is_array(x)]
    labels: list[str] = []

    def flat(*given: Any) -> list[Any]:
        with_static = list(leaves)
        for place, value in zip(dynamic, given, strict=True):
            with_static[place] = value
        args, kwargs = jax.tree_util.tree_unflatten(tree, with_static)
        result = picked(program.call(*args, **kwargs), program.out, "JAX")
        found = arrays_in(result, is_array)
        if not found:
            raise NotComparableError(
                f"the JAX side returns no arrays but {type(result).__name__}; return an array, or "
                "pick one with out="
            )
        labels[:] = found
        return list(found.values())

    paths = jax.tree_util.tree_flatten_with_path((program.args, program.kwargs))[0]
    names = [_input_name(paths[place][0]) for place in dynamic]
    return FlatProgram(flat, [leaves[place] for place in dynamic], names, labels)


def trace_jax(program: JaxProgram) -> JaxTrace:
    """Trace a JAX program and evaluate it in its own precision and in float64.

    Raises:
        NotComparableError: if it returns no arrays.
    """
    flat = flattened(program)
    arrays = flat.arrays
    with jax.enable_x64(False), jax.default_matmul_precision("highest"), running("JAX"):
        avals = flat.shapes()
        try:
            closed = jax.make_jaxpr(flat.call)(*avals)
            native = [np.asarray(x) for x in jax.jit(flat.call)(*arrays)]
        except _NEEDS_VALUES:
            from obscura_jax.parity.jax_eager import record

            closed, native = record(flat.call, arrays)
        except Exception as error:
            if type(error).__name__ != _CHANGES_STATE:
                raise
            raise NotComparableError(
                "the JAX side changes its own state when it is called, as dropout and batch norms "
                "in training mode do; call .eval() on the module"
            ) from error
    captured = captured_names(program.call)
    names = flat.names + [captured.get(id(c), "constant") for c in closed.consts]
    graph = build_graph(closed, arrays, names)
    arrays = [x for y in native if (x := as_numpy(y)) is not None]
    return evaluated(graph, flat.labels, arrays)


def evaluated(
    graph: Graph,
    labels: Sequence[str],
    native: list[NDArray[Any]],
    given: Mapping[int, Any] | None = None,
) -> JaxTrace:
    """Evaluate a graph in float64, and return its trace with all fingerprints.

    Args:
        graph: the program.
        labels: names of its outputs.
        native: its outputs in its own precision.
        given: values that stand in for those of nodes.
    """
    given = {i: _as_the_program_has_it(graph.nodes[i], x) for i, x in (given or {}).items()}
    parameters = [
        i
        for i, value in graph.leaves.items()
        if i not in graph.inputs and np.ndim(value) and graph.nodes[i].name != "literal"
    ]
    trace = JaxTrace(
        "JAX",
        graph.nodes,
        graph.outputs,
        list(labels),
        graph.inputs,
        parameters,
        None,
        {},
        native,
        graph.random,
        graph=graph,
        given=given,
    )
    trace.fetch = functools.partial(_fetch, graph, given)
    _fill(trace, [node.index for node in graph.nodes], given)
    return trace


def changed(
    before: JaxTrace, graph: Graph | None = None, given: Mapping[int, Any] | None = None
) -> JaxTrace:
    """Return the trace of a changed program, with only what the change alters evaluated again.

    Args:
        before: the trace of the program without the change.
        graph: the program with other operations; by default the same.
        given: values that stand in for those of nodes; by default the same.
    """
    graph = before.graph if graph is None else graph
    given = before.given if given is None else given
    given = {i: _as_the_program_has_it(graph.nodes[i], x) for i, x in given.items()}
    altered = _altered(before, graph, given)
    nodes = list(before.nodes)
    for i in altered:
        nodes[i] = replace(nodes[i])
    graph = replace(graph, nodes=nodes)
    trace = replace(
        before,
        nodes=nodes,
        graph=graph,
        given=given,
        kept={i: x for i, x in before.kept.items() if i not in altered},
        fetch=functools.partial(_fetch, graph, given),
        lines=[],
        parallels={},
    )
    known = {
        i: _as_the_program_has_it(nodes[i], trace.kept[i])
        for equation in graph.equations
        if not altered.isdisjoint(equation.outputs)
        for i in equation.inputs
        if i in trace.kept
    }
    _fill(trace, altered, {**known, **given})
    return trace


def _altered(before: JaxTrace, graph: Graph, given: Mapping[int, Any]) -> set[int]:
    """Return the nodes whose values may differ after a change of a program."""
    old = before.graph
    found = {i for i in {*given, *before.given} if given.get(i) is not before.given.get(i)}
    found |= {i for i, value in graph.leaves.items() if value is not old.leaves.get(i)}
    for equation, earlier in zip(graph.equations, old.equations, strict=True):
        if equation is not earlier or not found.isdisjoint(equation.inputs):
            found.update(i for i in equation.outputs if i not in given)
    return found


def _fill(trace: JaxTrace, wanted: Iterable[int], given: Mapping[int, Any]) -> None:
    """Evaluate nodes, and keep their fingerprints and, as far as memory allows, their values."""
    room = KEPT_BYTES - sum(x.nbytes for x in trace.kept.values())
    nodes = trace.nodes
    replaced = {i for e in trace.graph.equations if e.changed for i in e.outputs}
    for i, value in trace.graph.evaluate(wanted, given):
        array = as_numpy(value)
        if array is None:
            continue
        node = nodes[i]
        moved = node.permutes and i not in given and i not in replaced and array.dtype.kind == "f"
        node.print = nodes[node.inputs[0]].print if moved else fingerprint(array)
        if not node.leaf and array.nbytes <= room:
            trace.kept[i] = array
            room -= array.nbytes


def _as_the_program_has_it(node: Node, value: Any) -> Any:
    """Return the value of a node, with complex numbers for pairs of real ones."""
    pairs = "complex" in node.dtype and np.shape(value) == (*node.shape, 2)
    return value[..., 0] + 1j * value[..., 1] if pairs else value


def _fetch(graph: Graph, given: Mapping[int, Any], wanted: Iterable[int]) -> dict[int, Any]:
    found = graph.evaluate(wanted, given)
    return {i: array for i, x in found if (array := as_numpy(x)) is not None}


def is_array(x: Any) -> bool:
    """Return True for arrays of JAX and of NumPy, and for the values of a trace."""
    return hasattr(x, "dtype") and hasattr(x, "shape")


def _aval(x: Any) -> Any:
    """Return the shape and the 32-bit type of an array, which may be a random key."""
    if not is_plain(x.dtype):
        return x
    return jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))


def _input_name(path: Any) -> str:
    """Return a name for an input: its place among the arguments, or its keyword."""
    kind, first, *rest = path
    inner = jax.tree_util.keystr(tuple(rest), simple=True, separator=".")
    keyword = getattr(kind, "idx", 0) == 1
    name = str(first.key) if keyword else f"args[{first.idx}]"
    return f"{name}.{inner}" if inner else name
