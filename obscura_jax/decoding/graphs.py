"""The compilation of the decode loop for a CUDA device: as one CUDA graph, with few kernels."""

from collections.abc import Callable
from typing import Any

import jax

from obscura_jax.nn.target import on_one_gpu

# Every command of the loop, the loop and its conditionals become part of one graph. Without the
# minimum size, XLA leaves a loop out of graphs, and the host starts every kernel.
_ONE_GRAPH: dict[str, Any] = {
    "xla_gpu_enable_command_buffer": (
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,DYNAMIC_SLICE_FUSION,WHILE,CONDITIONAL"
    ),
    "xla_gpu_graph_min_graph_size": 1,
}
# For one row, a kernel computes a layer norm, the product that follows, its bias, and GELU or the
# shortcut. For more rows XLA makes more kernels with this option than without.
_WIDE_FUSIONS: dict[str, Any] = {
    "xla_gpu_experimental_enable_triton_heroless_priority_fusion": True
}


def decode_options(rows: int) -> dict[str, Any]:
    """Return XLA's options for the decode loop of the current target; none unless it is CUDA."""
    if not on_one_gpu():
        return {}
    return {**_ONE_GRAPH, **(_WIDE_FUSIONS if rows == 1 else {})}


class JitWithOptions:
    """A function that is jitted once for each set of XLA's options that its calls need."""

    def __init__(
        self, function: Callable[..., Any], options: Callable[..., dict[str, Any]], **jit: Any
    ) -> None:
        """Jit `function` with `jax.jit`'s arguments `jit` and `options(*arguments)`."""
        self._function, self._options, self._jit = function, options, jit
        self._jitted: dict[tuple[Any, ...], Any] = {}

    def for_call(self, *args: Any) -> Any:
        """Return the `jax.jit` function for these arguments."""
        options = self._options(*args)
        key = tuple(options.items())
        if key not in self._jitted:
            self._jitted[key] = jax.jit(self._function, **self._jit, compiler_options=options)
        return self._jitted[key]

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return self.for_call(*args)(*args)

    def trace(self, *args: Any) -> Any:
        """Return the `jax.stages.Traced` of a call."""
        return self.for_call(*args).trace(*args)

    def _cache_size(self) -> int:
        return sum(jitted._cache_size() for jitted in self._jitted.values())
