"""Keep the lines of a backward function that the user wrote for `jax.custom_vjp`.

JAX gives all operations of that function the line that calls the program's function. A new thread
has no such line, so that the operations have their own lines if the function is traced there.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from jax.extend import core, linear_util


def with_own_lines(bwd: Any) -> Any:
    """Return a backward function whose operations have their own lines.

    Args:
        bwd: the parameter of that name of an equation.
    """

    def call(*operands: Any) -> Any:
        if not all(hasattr(x, "shape") and hasattr(x, "dtype") for x in operands):
            return bwd.call_wrapped(*operands)
        results: list[Any] = []
        form: Any = None  # of the results: a list or, from JAX 0.12 on, a pair that contains it

        def arrays(*values: Any) -> list[Any]:
            nonlocal form
            results[:], form = jax.tree.flatten(bwd.call_wrapped(*values))
            return [x for x in results if isinstance(x, jax.Array)]

        def traced() -> Any:
            with jax.enable_x64(False), jax.default_matmul_precision("highest"):
                shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands]
                return jax.make_jaxpr(arrays)(*shapes)

        try:
            with ThreadPoolExecutor(1) as thread:
                closed = thread.submit(traced).result()
        except jax.errors.UnexpectedTracerError:  # it captures an array that is being traced
            return bwd.call_wrapped(*operands)
        found = iter(core.jaxpr_as_fun(closed)(*operands))
        leaves = [next(found) if isinstance(x, jax.Array) else x for x in results]
        return jax.tree.unflatten(form, leaves)

    return linear_util.wrap_init(call, debug_info=bwd.debug_info)
