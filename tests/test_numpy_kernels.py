"""Every primitive that the engine computes with NumPy gives JAX's result, in float64.

Each program of the table is traced; the engine's function then replaces the primitive's own.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend import core

from obscura_jax.parity import numpy_kernels

DRAWN = np.random.default_rng(0)
A, B = DRAWN.normal(size=(2, 3, 5, 7))
POSITIVE = np.abs(A) + 0.1
INSIDE = np.tanh(A)
SPECIAL = np.array([-np.inf, -1.5, -0.5, -0.0, 0.0, 0.5, 2.5, np.inf, np.nan])
N, M = DRAWN.integers(-9, 9, size=(2, 3, 5))
M = np.where(M == 0, 4, M)
FLAGS, OTHERS = A[0] > 0, B[0] > 0
ROWS, COLUMNS = (3, 0, 2), (1,)


def numbers(dtype, *shape):
    return lambda: lax.iota(dtype, 5) if not shape else lax.broadcasted_iota(dtype, shape, 1)


def unary(function, *more):
    return [(function, A), (function, SPECIAL), *more]


# For each primitive: functions that use it, with their arguments.
PROGRAMS = {
    "add": [(lax.add, A, B), (lax.add, N, M)],
    "add_any": [(jax.grad(lambda x: (x * x * x).sum()), A)],
    "sub": [(lax.sub, A, B)],
    "mul": [(lax.mul, A, B), (lax.mul, A + 1j, B - 2j)],
    "div": [(lax.div, A, B), (lax.div, N, M), (lax.div, SPECIAL, SPECIAL[::-1].copy())],
    "rem": [(lax.rem, A, B), (lax.rem, N, M)],
    "neg": unary(lax.neg, (lax.neg, N)),
    "abs": unary(lax.abs, (lax.abs, A + 1j)),
    "sign": unary(lax.sign, (lax.sign, N)),
    "max": [(lax.max, A, B), (lax.max, SPECIAL, SPECIAL[::-1].copy())],
    "min": [(lax.min, A, B), (lax.min, SPECIAL, SPECIAL[::-1].copy())],
    "pow": [(lax.pow, POSITIVE, B), (lax.pow, SPECIAL, np.full(9, 3.0))],
    "square": unary(lax.square, (lax.square, N)),
    "integer_pow": [
        (lambda x, y=y: lax.integer_pow(x, y), x)
        for y in (2, 3, 4, -1, -2, -3, 7)
        for x in (A, SPECIAL)
    ],
    "exp": unary(lax.exp),
    "exp2": unary(lax.exp2),
    "expm1": unary(lax.expm1),
    "log": unary(lax.log, (lax.log, POSITIVE)),
    "log1p": unary(lax.log1p, (lax.log1p, POSITIVE)),
    "sqrt": unary(lax.sqrt, (lax.sqrt, POSITIVE)),
    "rsqrt": unary(lax.rsqrt, (lax.rsqrt, POSITIVE)),
    "cbrt": unary(lax.cbrt),
    "sin": unary(lax.sin),
    "cos": unary(lax.cos),
    "tan": unary(lax.tan),
    "tanh": unary(lax.tanh),
    "atan2": [(lax.atan2, A, B)],
    "logistic": unary(lax.logistic),
    "erf": unary(lax.erf),
    "erfc": unary(lax.erfc),
    "floor": unary(lax.floor),
    "ceil": unary(lax.ceil),
    "is_finite": [(lax.is_finite, SPECIAL)],
    "eq": [(lax.eq, N, N), (lax.eq, N, M), (lax.eq, SPECIAL, SPECIAL)],
    "ne": [(lax.ne, N, N), (lax.ne, N, M), (lax.ne, SPECIAL, SPECIAL)],
    "ge": [(lax.ge, N, M), (lax.ge, A, B)],
    "gt": [(lax.gt, N, M), (lax.gt, A, B)],
    "le": [(lax.le, N, M), (lax.le, A, B)],
    "lt": [(lax.lt, N, M), (lax.lt, A, B)],
    "and": [(lax.bitwise_and, N, M), (lax.bitwise_and, FLAGS, OTHERS)],
    "or": [(lax.bitwise_or, N, M), (lax.bitwise_or, FLAGS, OTHERS)],
    "xor": [(lax.bitwise_xor, N, M), (lax.bitwise_xor, FLAGS, OTHERS)],
    "not": [(lax.bitwise_not, N), (lax.bitwise_not, FLAGS)],
    "select_n": [
        (lax.select_n, A > 0, A, B),
        (lax.select_n, np.abs(N) % 3, N, M, N + M),
        (lax.select_n, np.bool_(True), A, B),
    ],
    "clamp": [
        (lax.clamp, -POSITIVE, B, POSITIVE),
        (lax.clamp, np.float64(-0.5), A, np.float64(0.5)),
        (lax.clamp, np.int64(-3), N, np.int64(3)),
    ],
    "dot_general": [
        (lambda a, b: lax.dot_general(a, b, (((2,), (2,)), ((0,), (0,)))), A, B),
        (lambda a, b: lax.dot_general(a, b, (((2, 0), (2, 0)), ((), ()))), A, B),
        (lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((2, 0), (2, 0)))), A, B),
        (lambda a, b: lax.dot_general(a, b, (((), ()), ((), ()))), A[0], B[0]),
        (lambda a, b: lax.dot_general(a, b, (((1,), (1,)), ((), ()))), N, M),
    ],
    "broadcast_in_dim": [
        (lambda x: lax.broadcast_in_dim(x, (3, 2, 5, 7), (0, 2, 3)), A),
        (lambda x: lax.broadcast_in_dim(x, (3, 4, 7), (0, 2)), A[:, :1, 0] * np.ones(7)),
        (lambda x: lax.broadcast_in_dim(x, (4, 7), (0, 1)), A[:1, 0]),
        (lambda x: lax.broadcast_in_dim(x, (4, 7), ()), A[0, 0, 0]),
    ],
    "reshape": [(lambda x: lax.reshape(x, (7, 15)), A)],
    "transpose": [(lambda x: lax.transpose(x, (2, 0, 1)), A)],
    "squeeze": [(lambda x: lax.squeeze(x, (1, 3)), A[:, None, :, None])],
    "rev": [(lambda x: lax.rev(x, (0, 2)), A)],
    "slice": [
        (lambda x: lax.slice(x, (1, 0, 2), (3, 5, 7), (1, 2, 3)), A),
        (lambda x: lax.slice(x, (1, 0, 2), (3, 5, 6)), A),
    ],
    "dynamic_slice": [
        (lambda x, i, j, k: lax.dynamic_slice(x, (i, j, k), (2, 3, 4)), A, *starts)
        for starts in (np.array([1, 1, 2]), np.array([2, 9, -1]))
    ],
    "dynamic_update_slice": [
        (lambda x, y, i, j, k: lax.dynamic_update_slice(x, y, (i, j, k)), A, B[:2, :3, :4], *starts)
        for starts in (np.array([1, 1, 2]), np.array([2, 9, -1]))
    ],
    "concatenate": [(lambda a, b: lax.concatenate([a, b[:, :2], a], 1), A, B)],
    "pad": [
        (lambda x, y: lax.pad(x, y, ((1, 2, 0), (0, 0, 1), (3, 0, 2))), A, np.float64(2.5)),
        (lambda x, y: lax.pad(x, y, ((1, 0, 3),)), A[0, 0, :0], np.float64(1)),
        (lambda x, y: lax.pad(x, y, ((1, 2, 0), (0, 0, 1))), N, np.int64(7)),
    ],
    "iota": [(numbers(np.int32),), (numbers(np.float64, 3, 4),)],
    "convert_element_type": [
        (lambda x: lax.convert_element_type(x, np.int32), 9 * A),
        (lambda x: lax.convert_element_type(x, np.float64), N),
        (lambda x: lax.convert_element_type(x, np.bool_), N),
        (lambda x: lax.convert_element_type(x, np.float64), FLAGS),
    ],
    "copy": [(jnp.copy, A)],
    "stop_gradient": [(lax.stop_gradient, A)],
    "reduce_sum": [
        (lambda x: lax.reduce_sum(x, (0, 2)), A),
        (lambda x: lax.reduce_sum(x, (0,)), N),
    ],
    "reduce_max": [(lambda x: lax.reduce_max(x, (0, 2)), A)],
    "reduce_min": [(lambda x: lax.reduce_min(x, (1,)), A)],
    "reduce_prod": [(lambda x: lax.reduce_prod(x, (0, 2)), A)],
    "reduce_and": [(lambda x: lax.reduce_and(x, (1,)), FLAGS[:, :2])],
    "reduce_or": [(lambda x: lax.reduce_or(x, (1,)), FLAGS[:, :2])],
    "tile": [(lambda x: jnp.tile(x, (1, 3, 2)), A)],
    "argmax": [(lambda x: lax.argmax(x, 1, np.int32), A)],
    "argmin": [(lambda x: lax.argmin(x, 2, np.int32), A)],
    "cumsum": [(lambda x, r=r: lax.cumsum(x, 1, r), A) for r in (False, True)],
    "cumprod": [(lambda x, r=r: lax.cumprod(x, 2, r), A) for r in (False, True)],
    "cummax": [(lambda x, r=r: lax.cummax(x, 1, r), A) for r in (False, True)],
}
# Layout operations whose primitives need a device, or that round in the program's own precision.
UNCHANGED = ("copy_p", "reduce_precision", "sharding_constraint", "device_put")
WINDOWS = ("conv_general_dilated", "reduce_window_max", "reduce_window_min", "reduce_window_sum")


def steps(jaxpr, constants, arguments):
    """Yield each primitive of a program, with its parameters, operands and results."""
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, arguments, strict=True))

    def value(variable):
        return variable.val if isinstance(variable, core.Literal) else values[variable]

    for eqn in jaxpr.eqns:
        operands = [value(variable) for variable in eqn.invars]
        results = eqn.primitive.bind(*operands, **eqn.params)
        results = list(results) if eqn.primitive.multiple_results else [results]
        inner = eqn.params.get("jaxpr")
        if inner is not None:
            yield from steps(inner.jaxpr, inner.consts, operands)
        yield eqn.primitive.name, eqn.params, [np.asarray(x) for x in operands], results
        values |= dict(zip(eqn.outvars, results, strict=True))


def steps_of(function, *arguments):
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(function)(*arguments)
        return list(steps(closed.jaxpr, closed.consts, arguments))


def assert_close(found, expected):
    """Compare two arrays; measured: 3e-15 of the largest entry, in products of many numbers."""
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    if expected.dtype.kind not in "fc":
        np.testing.assert_array_equal(found, expected)
        return
    finite = np.abs(expected[np.isfinite(expected)])
    atol = 1e-14 * float(finite.max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=atol)


def test_the_programs_cover_the_table():
    assert {*PROGRAMS, *UNCHANGED, *WINDOWS} == {*numpy_kernels._TABLE}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_primitive_gives_the_result_of_jax(name):
    for function, *arguments in PROGRAMS[name]:
        found = [step for step in steps_of(function, *arguments) if step[0] == name]
        assert found
        for _, params, operands, (expected,) in found:
            (result,) = numpy_kernels.apply(name, params, operands)
            assert_close(result, expected)


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in ("is_finite", "iota")])
def test_other_operands_give_another_result(name):
    """The control: the comparison above is not satisfied by any operands."""
    function, *arguments = PROGRAMS[name][0]
    step = next(step for step in steps_of(function, *arguments) if step[0] == name)
    _, params, (first, *rest), (expected,) = step
    changed = ~first if first.dtype == bool else 1 - 3 * first[::-1]
    (result,) = numpy_kernels.apply(name, params, [changed, *rest])
    with pytest.raises(AssertionError):
        assert_close(result, expected)


@pytest.mark.parametrize("name", UNCHANGED)
def test_layout_operations_return_their_operand(name):
    assert numpy_kernels.apply(name, {}, [A])[0] is A


def test_other_primitives_and_operands_are_left_to_jax():
    assert numpy_kernels.apply("sort", {}, [A]) is None
    assert numpy_kernels.apply("add", {}, [jax.random.key(0), A]) is None
    negative = {"padding_config": ((-1, 0, 0),)}
    assert numpy_kernels.apply("pad", negative, [A[0, 0], np.float64(0)]) is None
