"""Let PyTorch compute attention step by step, so that its backward pass is elementary too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from obscura_jax.parity import torch_kernels
from obscura_jax.parity.torch_trace import Run


@contextmanager
def elementary_attention(run: Run) -> Iterator[None]:
    """Context manager: PyTorch computes attention step by step, also below autograd."""
    from torch.nn import functional
    from torch.nn.attention import SDPBackend, sdpa_kernel

    original = functional.scaled_dot_product_attention

    def attention(*args: Any, **kwargs: Any) -> Any:
        with run.inside("scaled_dot_product_attention", run.source()):
            return torch_kernels.attention(*args, **kwargs)

    functional.scaled_dot_product_attention = attention
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        functional.scaled_dot_product_attention = original
