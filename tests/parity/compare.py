"""Run a twin in both frameworks, forward and backward, and measure the differences."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.parity.twins import Apply, Twin

Arrays = dict[str, np.ndarray]


def run_reference(twin: Twin, dtype: Any) -> Arrays:
    """Return PyTorch's output and the gradients of sum(output * c) for a fixed random c."""

    def leaf(x: np.ndarray) -> torch.Tensor:
        return torch.tensor(x.astype(dtype) if x.dtype.kind == "f" else x)

    params = {name: leaf(p).requires_grad_() for name, p in twin.parameters().items()}
    inputs = [leaf(x) for x in twin.values()]
    for x in inputs:
        x.requires_grad_(x.is_floating_point())
    if isinstance(twin.reference, torch.nn.Module):
        module = twin.reference.eval()
        out = torch.func.functional_call(module, params, tuple(inputs), strict=False)
    else:
        out = twin.reference(*inputs)
    (out * leaf(_cotangent(tuple(out.shape)))).sum().backward()
    grads = {f"gradient of {name}": p.grad for name, p in params.items()}
    grads |= {f"gradient of input {i}": x.grad for i, x in enumerate(inputs)}
    tensors = {"output": out.detach()} | {k: g for k, g in grads.items() if g is not None}
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def run_port(twin: Twin, dtype: Any, apply: Apply | None = None) -> Arrays:
    """Return the same from JAX, for the twin's port or for another function in its place."""
    apply = apply or twin.apply
    params = {name: jnp.asarray(p, dtype) for name, p in twin.parameters().items()}
    params = unflatten_dict(params, sep=".")
    inputs = [jnp.asarray(x, dtype if x.dtype.kind == "f" else jnp.int32) for x in twin.values()]

    def loss(params: Any, *inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = apply(params, *inputs)
        return (out * jnp.asarray(_cotangent(out.shape), dtype)).sum(), out

    floats = [i for i, x in enumerate(inputs) if jnp.issubdtype(x.dtype, jnp.floating)]
    grad = jax.jit(jax.grad(loss, argnums=(0, *(i + 1 for i in floats)), has_aux=True))
    (of_params, *of_inputs), out = grad(params, *inputs)
    result = {"output": out}
    for name, g in flatten_dict(of_params, sep=".").items():
        result[f"gradient of {name}"] = g
    result |= {f"gradient of input {i}": g for i, g in zip(floats, of_inputs, strict=True)}
    return {name: np.asarray(x) for name, x in result.items()}


def differences(ours: Arrays, theirs: Arrays) -> dict[str, float]:
    """Return the largest difference of each array, relative to the reference's largest entry.

    The bias of the keys shifts all scores of a row equally, so its true gradient is 0 and the
    computed one is rounding error. It is compared with the largest entry of all gradients.
    """
    assert ours.keys() == theirs.keys()
    gradients = (np.abs(x).max() for k, x in theirs.items() if k != "output")
    largest_gradient = max(gradients, default=0.0)
    result = {}
    for name, x in theirs.items():
        assert ours[name].shape == x.shape, name
        assert ours[name].dtype == x.dtype, name
        scale = largest_gradient if name.endswith("W_key.bias") else np.abs(x).max()
        result[name] = float(np.abs(ours[name] - x).max() / scale)
    return result


def _cotangent(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(13).normal(size=shape)
