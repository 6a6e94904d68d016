"""Two traces are comparable if nothing is random, and inputs and outputs correspond."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity.comparable import check_comparable
from obscura_jax.parity.program import NotComparableError
from tests.support.traced import X, jax_trace, torch_trace

IDS = np.arange(4, 19).reshape(3, 5)


def test_programs_with_the_same_inputs_and_outputs_are_comparable():
    check_comparable(torch_trace(torch.tanh), jax_trace(jnp.tanh))
    check_comparable(torch_trace(torch.tanh), jax_trace(jnp.exp))  # but not equal


@pytest.mark.parametrize("change", [lambda x: x + 1, lambda x: x * np.float32(1 + 1e-4)])
def test_other_values_of_the_only_input_are_refused(change):
    with pytest.raises(NotComparableError, match="have different inputs"):
        check_comparable(torch_trace(torch.tanh), jax_trace(jnp.tanh, change(X)))


def test_other_token_ids_are_refused():
    table = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)

    def theirs(ids):
        return torch.from_numpy(table)[ids]

    def ours(ids):
        return jnp.asarray(table)[ids]

    check_comparable(torch_trace(theirs, IDS), jax_trace(ours, IDS))
    with pytest.raises(NotComparableError, match=r"args\[0\], both of shape \(3, 5\)"):
        check_comparable(torch_trace(theirs, IDS), jax_trace(ours, IDS + 1))


@pytest.mark.parametrize("given", [X.T, X.reshape(1, 35), X.astype(np.float64)])
def test_layout_and_type_of_an_input_are_free(given):
    check_comparable(torch_trace(torch.sum), jax_trace(jnp.sum, given))


def test_a_rounded_input_is_another_input():
    half = X.astype(np.float16)  # 3e-4 apart
    check_comparable(torch_trace(torch.sum, half), jax_trace(jnp.sum, half.astype(np.float32)))
    with pytest.raises(NotComparableError, match="have different inputs"):
        check_comparable(torch_trace(torch.sum), jax_trace(jnp.sum, half))


def test_an_input_that_is_not_read_is_not_compared():
    def ours(x, unused):
        return jnp.tanh(x)

    def theirs(x, unused):
        return torch.tanh(x)

    check_comparable(torch_trace(theirs, X, X + 1), jax_trace(ours, X, X - 1))
    with pytest.raises(NotComparableError, match="have different inputs"):
        check_comparable(torch_trace(lambda x: torch.tanh(x), X), jax_trace(jnp.tanh, X - 1))


def test_only_draws_that_reach_an_output_count():
    def ours(x):
        return jnp.tanh(x), jax.random.normal(jax.random.key(0), (3,))

    with pytest.raises(NotComparableError, match=r"the JAX side draws random numbers at test_comp"):
        check_comparable(torch_trace(lambda x: (x, x)), jax_trace(ours))
    check_comparable(torch_trace(torch.tanh), jax_trace(lambda x: ours(x)[0]))


def test_shapes_and_kinds_of_outputs():
    theirs = torch_trace(lambda x: x[:, :5] @ x)
    check_comparable(theirs, jax_trace(lambda x: x[:, :5] @ x))
    for ours, words in (
        (lambda x: (x[:, :5] @ x).T, r"return it from JAX as \.transpose\(1, 0\)"),
        (lambda x: jnp.ones((7, 5)), "return it with the axes in the same order"),
        (lambda x: (x[:, :5] @ x)[None], r"return it from JAX as \.reshape\(5, 7\)"),
        (lambda x: x + 1j, "is real in PyTorch and complex in JAX"),
        (lambda x: [x, x], "PyTorch returns 1 array .*, and JAX 2 arrays"),
    ):
        with pytest.raises(NotComparableError, match=words):
            check_comparable(theirs, jax_trace(ours))
