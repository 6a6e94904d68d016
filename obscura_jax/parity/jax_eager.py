"""Record the operations of a JAX function while it runs, if its control flow depends on values.

`jax.make_jaxpr` traces a function without values, so `if x.sum() > 0`, `int(x)`, `np.asarray(x)`
and `x[x > 0]` fail there. Here every traced array holds its value. The record is of the branches
that were taken; what the function computes outside of JAX is a constant, in its own precision.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal
from numpy.typing import NDArray

from obscura_jax.parity.program import NotComparableError

try:  # these are not a part of JAX's public interface
    from jax._src.core import Trace, Tracer, Var, eval_jaxpr, eval_trace, set_current_trace, typeof
    from jax._src.source_info_util import current
except ImportError:
    Trace = Tracer = object  # type: ignore[misc, assignment]
_TESTED = "0.10.2 or 0.12.0"


def record(
    flat: Callable[..., Sequence[Any]], arrays: Sequence[Any]
) -> tuple[Any, list[NDArray[Any]]]:
    """Run a function, and return its operations, as `jax.make_jaxpr` does, and its results.

    Args:
        flat: a function of arrays that returns a list of arrays.
        arrays: its inputs.

    Raises:
        NotComparableError: if this version of JAX is not the tested one and cannot do this.
    """
    if not _is_supported():
        raise NotComparableError(
            "the JAX side cannot be traced, because its control flow depends on the values of "
            f"arrays; pass these values as Python numbers, or use JAX {_TESTED}"
        )
    return _recorded(flat, arrays)


@cache
def _is_supported() -> bool:
    """Return whether a function with a branch and a custom derivative can be recorded."""
    try:
        closed, _ = _recorded(lambda x: [jax.nn.relu(x) + 1 if x > 0 else x], [np.float32(2)])
    except Exception:  # whatever another version of JAX lacks
        return False
    return len(closed.jaxpr.eqns) > 2


def _recorded(
    flat: Callable[..., Sequence[Any]], arrays: Sequence[Any]
) -> tuple[Any, list[NDArray[Any]]]:
    trace = _Recorder()
    inputs = [_Value(trace, jax.numpy.asarray(x)) for x in arrays]
    with set_current_trace(trace):
        results = list(flat(*inputs))
    outputs = [trace.atom(x) for x in results]
    jaxpr = SimpleNamespace(
        invars=[x.variable for x in inputs],
        constvars=[trace.known[id(x)][1] for x in trace.constants],
        eqns=trace.equations,
        outvars=outputs,
    )
    closed = SimpleNamespace(jaxpr=jaxpr, consts=trace.constants)
    return closed, [np.asarray(_value(x)) for x in results]


class _Value(Tracer):  # type: ignore[type-arg]
    """An array with its value and its variable."""

    __slots__ = ("value", "variable")

    def __init__(self, trace: Any, value: Any) -> None:
        super().__init__(trace, typeof(value))
        self.value, self.variable = value, Var(self.aval)

    def to_concrete_value(self) -> Any:
        """Return the value; JAX asks for it in `bool(x)` and `int(x)`."""
        return self.value

    def __array__(self, dtype: Any = None, context: Any = None, copy: Any = None) -> NDArray[Any]:
        found = np.array(self.value, dtype)
        if found.dtype.kind == "f":
            self._trace.read.append((found, self.variable))
        return found

    def __float__(self) -> float:
        return float(self.value)

    def __complex__(self) -> complex:
        return complex(self.value)

    def tolist(self) -> Any:
        """Return the value as numbers in nested lists."""
        return np.asarray(self.value).tolist()


class _Recorder(Trace):
    """Evaluates each operation, and keeps a list of them.

    Attributes:
        equations: the operations, with the attributes that `build_graph` reads.
        constants: the values of its constants.
        known: the constants with their variables, by id; they are kept, so that ids stay unique.
        read: the arrays of floats that the function has read, with their variables.
    """

    def __init__(self) -> None:
        super().__init__()
        self.equations: list[Any] = []
        self.constants: list[Any] = []
        self.known: dict[int, tuple[Any, Any]] = {}
        self.read: list[tuple[NDArray[Any], Any]] = []

    def atom(self, x: Any) -> Any:
        """Return the variable of an array, or a literal for a number."""
        if isinstance(x, _Value):
            return x.variable
        if id(x) in self.known:
            return self.known[id(x)][1]
        aval = typeof(x)
        if np.ndim(x) == 0 and isinstance(aval.dtype, np.dtype):  # a random key has another type
            return Literal(x, aval)
        variable = self._read_before(x)
        if variable is None:
            variable = Var(aval)
            self.constants.append(x)
        self.known[id(x)] = x, variable
        return variable

    def _read_before(self, x: Any) -> Any:
        """Return the variable of an array that the function read and gave back unchanged."""
        same = (v for y, v in self.read if y.dtype == x.dtype and np.array_equal(y, x))
        return next(same, None)

    def process_primitive(self, primitive: Any, tracers: Any, params: Any, /) -> Any:
        """Evaluate an operation and record it; a function that JAX inlines is entered."""
        if primitive.name in ("jit", "pjit") and _is_inlined(params["inline"]):
            closed = params["jaxpr"]
            with set_current_trace(self):
                return eval_jaxpr(
                    closed.jaxpr, closed.consts, *tracers, propagate_source_info=False
                )
        with set_current_trace(eval_trace):
            found = primitive.bind(*map(_value, tracers), **params)
        results = [_Value(self, x) for x in (found if primitive.multiple_results else [found])]
        equation = SimpleNamespace(
            primitive=primitive,
            params=params,
            invars=[self.atom(x) for x in tracers],
            outvars=[x.variable for x in results],
            source_info=_place(),
        )
        self.equations.append(equation)
        return results if primitive.multiple_results else results[0]

    def stage_value(self, x: Any) -> Any:
        """Return a value of Python or NumPy as an array, which is a constant."""
        return x if isinstance(x, _Value) else eval_trace.stage_value(x)

    def process_call(self, primitive: Any, function: Any, tracers: Any, params: Any, /) -> Any:
        """Enter a function that a primitive calls."""
        return self._entered(function, tracers)

    def process_custom_jvp_call(
        self, primitive: Any, function: Any, jvp: Any, tracers: Any, /, **options: Any
    ) -> Any:
        """Enter a function that has its own derivative."""
        return self._entered(function, tracers)

    def process_custom_vjp_call(
        self, primitive: Any, function: Any, fwd: Any, bwd: Any, tracers: Any, /, **options: Any
    ) -> Any:
        """Enter a function that has its own gradient."""
        return self._entered(function, tracers)

    def _entered(self, function: Any, tracers: Iterable[Any]) -> Any:
        with set_current_trace(self):
            return function.call_wrapped(*tracers)


def _is_inlined(setting: Any) -> bool:
    """Return whether `jax.make_jaxpr` shows the operations of a `jit` instead of the `jit`."""
    return setting is True or getattr(setting, "name", "") == "JAX_EARLY"  # from JAX 0.12 on


def _value(x: Any) -> Any:
    return x.value if isinstance(x, _Value) else x


def _place() -> Any:
    """Return the names and the call stack of the running operation, without this file's frames."""
    info = current()
    stack: Any = getattr(info.traceback, "frames", ())
    frames = [frame for frame in stack if frame.file_name != __file__]
    return SimpleNamespace(name_stack=info.name_stack, traceback=SimpleNamespace(frames=frames))
