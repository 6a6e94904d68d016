"""Build the flat graph of a traced JAX program.

`jax.make_jaxpr` traces the program in its own precision, with 64-bit types off, because these
change the program itself. Here nested functions are inlined and scans unrolled, so that every
operation is a node.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from obscura_jax.parity.constants import exact_value
from obscura_jax.parity.jax_graph import Equation, Graph
from obscura_jax.parity.jax_kernels import INLINED, LAYOUT, PERMUTES, RANDOM
from obscura_jax.parity.jax_lift import is_plain, scan_sizes
from obscura_jax.parity.sources import Frame, library_roots, user_source
from obscura_jax.parity.trace import Node, Source

_UNROLL = 20_000  # operations that unrolled scans may add


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
        if hasattr(variable.aval, "dtype") and is_plain(variable.aval.dtype):
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
        if not shape and is_plain(getattr(value, "dtype", np.dtype(float))):
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
                if is_plain(aval.dtype):
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
            line = caller or _source_of(eqn)
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
        name, source = eqn.primitive.name, caller or _source_of(eqn)
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
        fixed, carried = scan_sizes(params)
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
            source=_source_of(eqn),
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


def _source_of(eqn: Any) -> Source | None:
    """Return the user's line of an operation."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return None
    return user_source(
        Frame(frame.file_name, frame.line_num, frame.function_name) for frame in traceback.frames
    )


def _is_the_users(eqn: Any) -> bool:
    """Return True if a line outside of libraries computes the operation."""
    source = _source_of(eqn)
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
