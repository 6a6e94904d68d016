"""Apply JAX primitives in float64, whatever type the program asks for."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TYPE_PARAMETERS = ("new_dtype", "dtype", "preferred_element_type", "out_dtype")
_LOW = {
    jnp.dtype(name): jnp.dtype("float64")
    for name in ("float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
} | {jnp.dtype("complex64"): jnp.dtype("complex128")}

# These have a function of scalars among their parameters, which is written for the program's type.
_SCATTERS = {
    "scatter": jax.lax.scatter,
    "scatter-add": jax.lax.scatter_add,
    "scatter_add": jax.lax.scatter_add,
    "scatter-sub": jax.lax.scatter_sub,
    "scatter_sub": jax.lax.scatter_sub,
    "scatter-mul": jax.lax.scatter_mul,
    "scatter_mul": jax.lax.scatter_mul,
    "scatter-min": jax.lax.scatter_min,
    "scatter_min": jax.lax.scatter_min,
    "scatter-max": jax.lax.scatter_max,
    "scatter_max": jax.lax.scatter_max,
}


def is_plain(dtype: Any) -> bool:
    """Return True for types that NumPy has, False for random keys."""
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def lifted_type(dtype: Any) -> Any:
    """Return float64 for a real type of lower precision, complex128 for complex64, else `dtype`."""
    if dtype is None or not is_plain(dtype):
        return dtype
    return _LOW.get(jnp.dtype(dtype), jnp.dtype(dtype))


def lifted(x: Any) -> Any:
    """Return a value in float64 if it is a float of lower precision."""
    dtype = getattr(x, "dtype", None)
    if dtype is None:
        return jnp.asarray(x)
    target = lifted_type(dtype)
    if target == dtype:
        return jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x
    return jnp.asarray(x).astype(target)


def bind_lifted(primitive: Any, params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    """Apply a primitive to operands in float64.

    A primitive that takes no float64, such as a kernel that was written for float32, is applied in
    its own types.
    """
    name = primitive.name
    if name == "reduce_precision":
        return [operands[0]]
    if name == "while":
        return _while(params, operands)
    if name == "cond":
        index, *rest = operands
        branches = [_function(branch) for branch in params["branches"]]
        return list(jax.lax.switch(index, branches, *rest))
    if name == "scan":
        return _scan(params, operands)
    changed = dict(params)
    if name in ("bitcast_convert_type", "pure_callback", "io_callback"):
        return _as_written(primitive, params, operands)
    if name in _SCATTERS:
        return [_scatter(name, params, *operands)]
    for key in _TYPE_PARAMETERS:
        if changed.get(key) is not None:
            changed[key] = lifted_type(changed[key])
    if name == "dot_general":
        changed["precision"] = None
    try:
        results = primitive.bind(*operands, **changed)
    except (TypeError, ValueError, NotImplementedError):
        return _as_written(primitive, params, operands)
    return [lifted(x) for x in (results if primitive.multiple_results else [results])]


def _scatter(name: str, params: Mapping[str, Any], operand: Any, indices: Any, updates: Any) -> Any:
    """Return an array with entries set, or combined with others."""
    options = ("indices_are_sorted", "unique_indices", "mode")
    return _SCATTERS[name](
        operand,
        indices,
        updates,
        params["dimension_numbers"],
        **{key: params[key] for key in options},
    )


def _as_written(primitive: Any, params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    """Apply a primitive in 32 bits."""
    lowered = [
        x.astype(jnp.float32) if getattr(x, "dtype", None) == jnp.float64 else x for x in operands
    ]
    results = primitive.bind(*lowered, **params)
    return [lifted(x) for x in (results if primitive.multiple_results else [results])]


def _function(closed: Any) -> Any:
    """Return a closed jaxpr as a function in float64."""

    def call(*operands: Any) -> list[Any]:
        return evaluate_jaxpr(closed.jaxpr, closed.consts, operands)

    return call


def evaluate_jaxpr(jaxpr: Any, constants: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """Return the results of a jaxpr in float64."""
    from jax.extend import core

    from obscura_jax.parity.constants import exact_value

    values: dict[Any, Any] = {}

    def value(variable: Any) -> Any:
        if isinstance(variable, core.Literal):
            aval: Any = variable.aval
            return lifted(exact_value(np.asarray(variable.val, aval.dtype)))
        return values[variable]

    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        values[variable] = lifted(constant)
    values.update(zip(jaxpr.invars, operands, strict=True))
    for eqn in jaxpr.eqns:
        given = [value(variable) for variable in eqn.invars]
        inner = next(
            (p for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if (p := eqn.params.get(k))), None
        )
        if inner is not None and eqn.primitive.name not in ("while", "cond", "scan"):
            body = getattr(inner, "jaxpr", inner)
            results = evaluate_jaxpr(body, getattr(inner, "consts", ()), given)
        else:
            results = bind_lifted(eqn.primitive, eqn.params, given)
        values.update(zip(eqn.outvars, results, strict=True))
    return [value(variable) for variable in jaxpr.outvars]


def _while(params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    conditions, bodies = params["cond_nconsts"], params["body_nconsts"]
    for_condition = operands[:conditions]
    for_body = operands[conditions : conditions + bodies]
    condition, body = _function(params["cond_jaxpr"]), _function(params["body_jaxpr"])
    return list(
        jax.lax.while_loop(
            lambda carry: condition(*for_condition, *carry)[0],
            lambda carry: body(*for_body, *carry),
            list(operands[conditions + bodies :]),
        )
    )


def scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many operands of a scan are constant, and how many are carried."""
    if "num_consts" in params:  # before JAX 0.12
        return params["num_consts"], params["num_carry"]
    constant, carried, _ = params["ft_in"].unpack()
    return len(constant), len(carried)


def _scan(params: Mapping[str, Any], operands: Sequence[Any]) -> list[Any]:
    fixed, carried = scan_sizes(params)
    step = _function(params["jaxpr"])

    def body(carry: Any, rows: Any) -> tuple[Any, Any]:
        found = step(*operands[:fixed], *carry, *rows)
        return found[:carried], found[carried:]

    carry, columns = jax.lax.scan(
        body,
        list(operands[fixed : fixed + carried]),
        list(operands[fixed + carried :]),
        length=params["length"],
        reverse=params["reverse"],
    )
    return [*carry, *columns]
