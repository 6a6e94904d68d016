"""Trace the backward pass of a JAX program, and evaluate it in float64.

Each operation of the program gets a number in its name stack before the program is differentiated.
JAX copies the stack to the operations of the backward pass, which so lead to those of the program.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core
from numpy.typing import NDArray

from obscura_jax.parity.backward import FACTORS, Backward, NoGradientsError
from obscura_jax.parity.jax_build import build_graph
from obscura_jax.parity.jax_bwd import with_own_lines
from obscura_jax.parity.jax_graph import Graph, in_float64
from obscura_jax.parity.jax_trace import JaxTrace, evaluated, flattened
from obscura_jax.parity.program import JaxProgram
from obscura_jax.parity.side_errors import running

_TAG = "equation#"
_NUMBER = re.compile(rf"{_TAG}(\d+)")
_JAX = str(Path(jax.__file__).parent)
_WRAPPERS = ("traceback_util.py", "api_util.py")  # frames between a function and its caller
_STEP = re.compile(r"scan\[(\d+)\]")
_BACKWARD = "transpose("
_STOP = "stop#"  # a stop_gradient outside of JAX's own functions


def jax_backward(
    program: JaxProgram,
    forward: JaxTrace,
    leaves: Sequence[int],
    cotangents: Mapping[int, NDArray[Any]],
) -> Backward:
    """Return the backward pass of a program.

    Args:
        program: the program.
        forward: its trace. Values that stand in for those of its nodes stand in here too.
        leaves: the nodes of the arrays whose gradients are wanted.
        cotangents: the factors of each output, by position.

    Raises:
        NoGradientsError: if JAX cannot differentiate the program.
    """
    flat = flattened(program)
    with jax.enable_x64(False), jax.default_matmul_precision("highest"), running("JAX"):
        try:
            closed = jax.make_jaxpr(flat.call)(*flat.shapes())
            numbered = _numbered(closed.jaxpr, count())
            places = [*forward.graph.inputs, *forward.graph.captured]
            if len(places) != len(flat.arrays) + len(closed.consts):
                raise NoGradientsError("the JAX side captures other arrays in a second trace")
            whole = _differentiated(numbered, places, leaves, list(cotangents))
            given = [*flat.shapes(), *closed.consts, *_types(closed, cotangents)]
            backward = jax.make_jaxpr(whole)(*given)
        except (ValueError, TypeError, IndexError, NotImplementedError) as error:
            why = " ".join(str(error).split()).split(". ")[0]
            raise NoGradientsError(f"JAX cannot differentiate its side: {why}") from error
    values = [*flat.arrays, *closed.consts, *cotangents.values()]
    names = [forward.nodes[i].name for i in places]
    names += [f"{FACTORS} {n + 1}" for n in cotangents]
    names += ["constant"] * len(backward.consts)
    graph = build_graph(backward, values, names)
    of = _forward_results(graph)
    stops = frozenset(n.index for n in graph.nodes if n.op == "stop_gradient" and _STOP in n.path)
    _clean_paths(graph)
    labels = [forward.nodes[i].name for i in leaves]
    trace = evaluated(graph, labels, [], _given(forward, graph, places))
    return Backward(trace, dict(zip(leaves, graph.outputs, strict=True)), of, stops)


def _types(closed: Any, cotangents: Mapping[int, NDArray[Any]]) -> list[Any]:
    avals = closed.out_avals
    return [jax.ShapeDtypeStruct(avals[n].shape, avals[n].dtype) for n in cotangents]


def _differentiated(
    jaxpr: Any, places: Sequence[int], leaves: Sequence[int], outputs: Sequence[int]
) -> Any:
    """Return the function from all arrays and the factors of the outputs to the gradients."""
    chosen = [places.index(i) for i in leaves]
    inputs = len(jaxpr.invars)

    def whole(*given: Any) -> Any:
        arrays, factors = list(given[: len(places)]), list(given[len(places) :])

        def primal(*values: Any) -> list[Any]:
            full = list(arrays)
            for place, value in zip(chosen, values, strict=True):
                full[place] = value
            program = core.ClosedJaxpr(jaxpr, full[inputs:])
            results = core.jaxpr_as_fun(program)(*full[:inputs])
            return [results[n] for n in outputs]

        return jax.vjp(primal, *(arrays[place] for place in chosen))[1](factors)

    return whole


def _numbered(jaxpr: Any, numbers: Any) -> Any:
    """Return a jaxpr, with those inside it, whose equations have numbers in their name stacks."""

    def inside(value: Any) -> Any:
        if isinstance(value, core.ClosedJaxpr):
            return core.ClosedJaxpr(_numbered(value.jaxpr, numbers), value.consts)
        if isinstance(value, core.Jaxpr):
            return _numbered(value, numbers)
        if isinstance(value, tuple):
            return tuple(inside(part) for part in value) if type(value) is tuple else value
        return value

    equations = []
    for eqn in jaxpr.eqns:
        info = eqn.source_info
        stack = info.name_stack.extend(f"{_TAG}{next(numbers)}")
        if eqn.primitive.name == "stop_gradient" and _called_outside_of_jax(eqn):
            stack = stack.extend(_STOP)
        params = {key: inside(value) for key, value in eqn.params.items()}
        if "bwd" in params:
            params["bwd"] = with_own_lines(params["bwd"])
        equations.append(eqn.replace(params=params, source_info=info.replace(name_stack=stack)))
    return jaxpr.replace(eqns=equations)


def _called_outside_of_jax(eqn: Any) -> bool:
    """Return True if no function of JAX, such as a softmax, calls stop_gradient."""
    frames = eqn.source_info.traceback.frames if eqn.source_info.traceback else []
    names = [frame.function_name for frame in frames]
    if "stop_gradient" not in names:
        return False
    last = len(names) - 1 - names[::-1].index("stop_gradient")
    callers = [frame for frame in frames[last + 1 :] if not frame.file_name.endswith(_WRAPPERS)]
    return bool(callers) and not callers[0].file_name.startswith(_JAX)


def _key(path: str) -> tuple[int, tuple[str, ...]] | None:
    """Return the number of the operation and of the iterations of scans."""
    numbers = _NUMBER.findall(path)
    return (int(numbers[-1]), tuple(_STEP.findall(path))) if numbers else None


def _forward_results(graph: Graph) -> dict[int, tuple[int, ...]]:
    """Return the results of the program's operation for each operation of the backward pass."""
    results: dict[Any, list[int]] = {}
    for node in graph.nodes:
        if _BACKWARD not in node.path and (key := _key(node.path)) is not None:
            results.setdefault(key, []).append(node.index)
    return {
        node.index: tuple(results.get(_key(node.path), ()))
        for node in graph.nodes
        if _BACKWARD in node.path
    }


def _clean_paths(graph: Graph) -> None:
    """Remove the numbers and the names of JAX's transformations from the paths."""
    for node in graph.nodes:
        path = _NUMBER.sub("", node.path)
        for word in ("transpose(", "jvp(", "rematted_computation", _STOP):
            path = path.replace(word, "")
        if path != node.path:
            path = path.replace(")", "")
        node.path = "/".join(filter(None, path.split("/")))


def _given(forward: JaxTrace, graph: Graph, places: Sequence[int]) -> dict[int, Any]:
    """Return the values that stand in for those of nodes, for the graph of the backward pass."""
    found: dict[int, Any] = {}
    computed = {}
    of_leaf = dict(zip(places, graph.inputs, strict=False))  # the factors of outputs follow
    for i, value in forward.given.items():
        if i in of_leaf:
            found[of_leaf[i]] = value
        else:
            computed[i] = value
    if not computed:
        return found
    old = dict(forward.graph.evaluate(computed))
    here = dict(graph.evaluate(range(len(graph.nodes)), found))
    for i, value in computed.items():
        for j, x in here.items():
            same = (
                np.shape(x) == np.shape(old[i]) and graph.nodes[j].dtype == forward.nodes[i].dtype
            )
            if same and j not in found and np.array_equal(in_float64(x), old[i]):
                found[j] = value
    return found
