"""A traced JAX program as a flat list of operations that can be changed and evaluated.

`jax.make_jaxpr` traces the program in its own precision, with 64-bit types off, because these
change the program itself. Then nested functions are inlined and scans unrolled, so that every
operation is a node. Evaluation replaces float32 and lower types by float64.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from numpy.typing import NDArray

from obscura_jax.parity import numpy_kernels
from obscura_jax.parity.constants import exact_value
from obscura_jax.parity.jax_kernels import INLINED, LAYOUT, PERMUTES, RANDOM
from obscura_jax.parity.jax_lift import bind_lifted, lifted, lifted_type
from obscura_jax.parity.sources import Frame, library_roots, user_source
from obscura_jax.parity.trace import Node, Source

_UNROLL = 20_000  # operations that unrolled scans may add


@dataclass(frozen=True)
class Equation:
    """One application of a primitive.

    Attributes:
        op: its name.
        params: its parameters.
        inputs: nodes of its operands.
        outputs: nodes of its results.
        primitive: the primitive, or None for the operations "scan_slice" and "scan_stack".
        call: computes the results from the operands in float64; default: the primitive.
    """

    op: str
    params: Mapping[str, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    primitive: Any = None
    call: Callable[..., Sequence[Any]] | None = None

    @property
    def changed(self) -> bool:
        """True if another function than the primitive computes the results."""
        return self.call is not None and self.primitive is not None

    def run(self, operands: Sequence[Any]) -> Sequence[Any]:
        """Return the results, in float64 where they are floats: arrays of NumPy, or random keys."""
        if self.call is not None:
            return self.call(*operands)
        known = numpy_kernels.apply(self.op, self.params, operands)
        if known is not None:
            return known
        with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
            results = bind_lifted(self.primitive, self.params, [lifted(x) for x in operands])
            return [np.asarray(x) if _plain(x.dtype) else x for x in results]


@dataclass(frozen=True)
class Graph:
    """A program as a list of operations.

    Attributes:
        nodes: a description of every value.
        equations: the operations, in order.
        leaves: the value of each leaf, by node, in its own precision.
        outputs: the nodes that the program returns.
        inputs: the nodes that are its inputs.
        random: the nodes that draw random numbers.
        captured: the nodes of the arrays that the function captures.
    """

    nodes: list[Node]
    equations: list[Equation]
    leaves: dict[int, Any]
    outputs: list[int]
    inputs: list[int]
    random: list[int] = field(default_factory=list)
    captured: list[int] = field(default_factory=list)

    def evaluate(
        self, wanted: Iterable[int], given: Mapping[int, Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        """Yield nodes with their values in float64, in order; each value is kept while needed.

        Args:
            wanted: the nodes.
            given: values that stand in for those of nodes.
        """
        wanted, given = set(wanted), given or {}
        needed = self._needed(wanted, given)
        last = {i: n for n, equation in enumerate(needed) for i in equation.inputs}
        values: dict[int, Any] = {}

        def value(i: int) -> Any:
            if i not in values:
                values[i] = in_float64(given[i] if i in given else self.leaves[i])
            return values[i]

        for i in sorted(i for i in wanted if i in given or i in self.leaves):
            yield i, value(i)
            if i not in last:
                del values[i]
        for n, equation in enumerate(needed):
            results = equation.run([value(i) for i in equation.inputs])
            for i, result in zip(equation.outputs, results, strict=True):
                if i in given:
                    continue
                if np.shape(result) != self.nodes[i].shape:
                    raise ValueError(f"the changed operation {equation.op} has another shape")
                if i in wanted:
                    yield i, result
                if last.get(i, -1) > n:
                    values[i] = result
            for i in equation.inputs:
                if last[i] == n:
                    values.pop(i, None)

    def _needed(self, wanted: Iterable[int], given: Mapping[int, Any]) -> list[Equation]:
        """Return the operations that the wanted values depend on, in order."""
        needed, found = {i for i in wanted if i not in given}, []
        for equation in reversed(self.equations):
            if not needed.isdisjoint(equation.outputs):
                found.append(equation)
                needed.update(i for i in equation.inputs if i not in given)
        return found[::-1]

    def with_equations(self, changed: Mapping[int, Equation]) -> "Graph":
        """Return a copy in which the equations at some positions are replaced."""
        equations = [changed.get(n, equation) for n, equation in enumerate(self.equations)]
        return replace(self, equations=equations)


def build_graph(closed: Any, leaves: Sequence[Any], names: Sequence[str]) -> Graph:
    """Return the flat graph of a traced function.

    Args:
        closed: the closed jaxpr.
        leaves: its inputs, arrays.
        names: a name for each input, such as "args[0]"; one for each constant follows.
    """
    builder = _Builder()
    inputs = []
    variables = closed.jaxpr.invars
    for variable, leaf, name in zip(variables, leaves, names[: len(variables)], strict=True):
        value = leaf
        if hasattr(variable.aval, "dtype") and _plain(variable.aval.dtype):
            value = np.asarray(leaf) if not hasattr(leaf, "dtype") else leaf
            if value.dtype.kind in "iub" and value.dtype != variable.aval.dtype:
                value = value.astype(variable.aval.dtype)
        inputs.append(builder.leaf(value, name or "input"))
    constants = [
        builder.leaf(value, name or "constant")
        for value, name in zip(closed.consts, names[len(variables) :], strict=True)
    ]
    outputs = builder.add_all(closed.jaxpr, constants, inputs, "")
    return Graph(
        builder.nodes,
        builder.equations,
        builder.leaves,
        outputs,
        inputs,
        builder.random,
        constants,
    )


class _Builder:
    """Collects the operations of nested jaxprs in one list."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.equations: list[Equation] = []
        self.leaves: dict[int, Any] = {}
        self.random: list[int] = []
        self._room = _UNROLL
        self._shared: dict[int, int] = {}  # id of a constant array -> its leaf

    def leaf(self, value: Any, name: str) -> int:
        """Add a leaf, once for each constant array."""
        if name in ("constant", "literal") and id(value) in self._shared:
            return self._shared[id(value)]
        shape, dtype = tuple(np.shape(value)), str(getattr(value, "dtype", "float64"))
        numbers: tuple[float, ...] = ()
        if not shape and _plain(getattr(value, "dtype", np.dtype(float))):
            value = exact_value(value)
            if np.asarray(value).dtype.kind == "f":
                numbers = (float(value),)
        index = self._node("leaf", (), shape, dtype, name=name, numbers=numbers)
        self.leaves[index] = value
        if name == "constant":
            self._shared[id(value)] = index
        return index

    def _node(self, op: str, inputs: tuple[int, ...], shape: Any, dtype: str, **more: Any) -> int:
        node = Node(len(self.nodes), op, inputs, tuple(shape), dtype, **more)
        self.nodes.append(node)
        return node.index

    def add_all(
        self,
        jaxpr: Any,
        constants: Sequence[int],
        inputs: Sequence[int],
        path: str,
        caller: Source | None = None,
        function: str = "",
    ) -> list[int]:
        """Add the operations of a jaxpr, and return the nodes of its results.

        Args:
            jaxpr: the function.
            constants: nodes of its constants.
            inputs: nodes of its operands.
            path: the name stack.
            caller: the user's line that calls it, if it is a function of a library.
            function: its name.
        """
        places: dict[Any, int] = {}

        def place(variable: Any) -> int:
            if isinstance(variable, core.Literal):
                value = variable.val
                aval: Any = variable.aval
                if _plain(aval.dtype):
                    value = np.asarray(value, aval.dtype)
                return self.leaf(value, "literal")
            return places[variable]

        places.update(zip(jaxpr.constvars, constants, strict=True))
        places.update(zip(jaxpr.invars, inputs, strict=True))
        for eqn in jaxpr.eqns:
            operands = [place(variable) for variable in eqn.invars]
            stack = str(eqn.source_info.name_stack)
            here = f"{path}/{stack}" if path and stack else path or stack
            results = self._add(eqn, operands, here, caller, function)
            places.update(zip(eqn.outvars, results, strict=True))
        return [place(variable) for variable in jaxpr.outvars]

    def _add(
        self, eqn: Any, operands: list[int], path: str, caller: Source | None, function: str
    ) -> list[int]:
        name = eqn.primitive.name
        inner = _inner(eqn)
        if inner is not None and name in INLINED:
            constants = [self.leaf(c, "constant") for c in getattr(inner, "consts", ())]
            body, called = getattr(inner, "jaxpr", inner), str(eqn.params.get("name", ""))
            # JAX traces a function once. Its lines then hold the stack of the first call, so
            # those of a library's function stand for the line that calls it here.
            line = caller or source_of(eqn)
            if called and any(map(functools.partial(_is_inside, called), body.eqns)):
                line = None
            if not called and any(map(_is_the_users, body.eqns)):
                line = caller
            return self.add_all(body, constants, operands, path, line, called or function)
        if name == "scan":
            cost = eqn.params["length"] * len(eqn.params["jaxpr"].jaxpr.eqns)
            if cost <= self._room:
                self._room -= cost
                return self._unrolled(eqn, operands, path, caller)
        return self._primitive(eqn, operands, path, caller, function)

    def _primitive(
        self, eqn: Any, operands: list[int], path: str, caller: Source | None, function: str
    ) -> list[int]:
        name, source = eqn.primitive.name, caller or source_of(eqn)
        results = []
        for variable in eqn.outvars:
            aval = variable.aval
            first = self.nodes[operands[0]] if operands else None
            same_size = first is not None and first.size == int(np.prod(aval.shape))
            results.append(
                self._node(
                    name,
                    tuple(operands),
                    aval.shape,
                    str(getattr(aval, "dtype", "")),
                    source=source,
                    path=path,
                    layout=name in LAYOUT,
                    permutes=name in PERMUTES and same_size,
                    fused=function if caller else "",
                    lowered=_lowered(eqn),
                )
            )
        if name in RANDOM:
            self.random += results
        self.equations.append(
            Equation(name, dict(eqn.params), tuple(operands), tuple(results), eqn.primitive)
        )
        return results

    def _unrolled(
        self, eqn: Any, operands: list[int], path: str, caller: Source | None
    ) -> list[int]:
        """Add the iterations of a scan one after another."""
        params = eqn.params
        closed, length, reverse = params["jaxpr"], params["length"], params["reverse"]
        fixed, carried = params["num_consts"], params["num_carry"]
        shared, carry = operands[:fixed], operands[fixed : fixed + carried]
        rows = operands[fixed + carried :]
        constants = [self.leaf(c, "constant") for c in closed.consts]
        collected: list[list[int]] = []
        for step in reversed(range(length)) if reverse else range(length):
            here = f"{path}/scan[{step}]" if path else f"scan[{step}]"
            inputs = [self._scan_slice(row, step, here, eqn) for row in rows]
            found = self.add_all(closed.jaxpr, constants, [*shared, *carry, *inputs], here, caller)
            carry = found[:carried]
            collected.append(found[carried:])
        if reverse:
            collected.reverse()
        columns = list(zip(*collected, strict=True)) if collected else []
        avals = [variable.aval for variable in eqn.outvars[carried:]]
        stacked = [
            self._synthetic(
                "scan_stack", column, aval, path, eqn, lambda *parts: [np.stack(parts)], {}
            )
            for column, aval in zip(columns, avals, strict=True)
        ]
        return [*carry, *stacked]

    def _scan_slice(self, row: int, step: int, path: str, eqn: Any) -> int:
        node = self.nodes[row]
        aval = jax.ShapeDtypeStruct(node.shape[1:], node.dtype)

        def select(x: Any) -> list[Any]:
            return [x[step]]

        return self._synthetic("scan_slice", (row,), aval, path, eqn, select, {"index": step})

    def _synthetic(
        self,
        op: str,
        operands: Sequence[int],
        aval: Any,
        path: str,
        eqn: Any,
        call: Callable[..., Sequence[Any]],
        params: Mapping[str, Any],
    ) -> int:
        index = self._node(
            op,
            tuple(operands),
            aval.shape,
            str(aval.dtype),
            source=source_of(eqn),
            path=path,
            layout=True,
        )
        self.equations.append(Equation(op, params, tuple(operands), (index,), None, call))
        return index


def _inner(eqn: Any) -> Any:
    """Return the function that an operation calls once, or None."""
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(key)
        if inner is not None:
            return inner
    return None


def source_of(eqn: Any) -> Source | None:
    """Return the user's line of an operation."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    return user_source(
        Frame(frame.file_name, frame.line_num, frame.function_name) for frame in traceback.frames
    )


def _is_the_users(eqn: Any) -> bool:
    """Return True if a line outside of libraries computes the operation."""
    source = source_of(eqn)
    return source is not None and not source.file.startswith(library_roots())


def _is_inside(function: str, eqn: Any) -> bool:
    """Return True if a line of the user's function of this name computes the operation."""
    traceback = eqn.source_info.traceback
    return traceback is not None and any(
        frame.function_name.rsplit(".", 1)[-1] == function
        and not frame.file_name.startswith(library_roots())
        for frame in traceback.frames
    )


def _lowered(eqn: Any) -> str:
    """Return the type that a cast rounds to, if it is lower than that of the operand."""
    if eqn.primitive.name not in ("convert_element_type", "reduce_precision"):
        return ""
    before, after = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    if eqn.primitive.name == "reduce_precision":
        return f"{eqn.params['mantissa_bits']} bits"
    floats = jnp.issubdtype(before, jnp.floating) and jnp.issubdtype(after, jnp.floating)
    if floats and jnp.finfo(after).nmant < jnp.finfo(before).nmant:
        return str(after)
    return ""


def _plain(dtype: Any) -> bool:
    """Return True for types that NumPy has, False for random keys."""
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def in_float64(x: Any) -> Any:
    """Return a value as an array of NumPy in float64, complex128 or an integer type.

    Random keys are returned unchanged.
    """
    dtype = getattr(x, "dtype", None)
    if dtype is not None and not _plain(dtype):
        return x
    array = np.asarray(x)
    return array.astype(lifted_type(array.dtype), copy=False)


def as_numpy(x: Any) -> NDArray[Any] | None:
    """Return a value as an array of reals or integers; None for random keys."""
    array = in_float64(x)
    if not isinstance(array, np.ndarray):
        return None
    if array.dtype.kind == "c":
        return np.stack([array.real, array.imag], -1)
    return array
