"""assert_parity raises an AssertionError with the report as its message."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.parity.compare_programs import assert_parity, compare
from obscura_jax.parity.program import jax_program, torch_program

X = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
THEIRS = torch_program(torch.tanh, torch.from_numpy(X))


def test_equal_programs_pass():
    assert assert_parity(THEIRS, jax_program(jnp.tanh, X)) is None


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (lambda x: jnp.tanh(x) * 1.001, "verdict: differs, first at "),
        (lambda x: jnp.tanh(x)[:2], "verdict: not comparable: the output has shape (5, 7)"),
    ],
)
def test_the_message_is_the_report(ours, words):
    with pytest.raises(AssertionError) as error:
        assert_parity(THEIRS, jax_program(ours, X))
    assert str(error.value) == str(compare(THEIRS, jax_program(ours, X)))
    assert words in str(error.value)


def test_gradients_are_compared_unless_they_are_left_out():
    def ours(x):
        y = jnp.tanh(x)
        return jnp.where(jnp.isnan(y), y, jnp.asarray(y)) + (x - jnp.asarray(x)) * 0

    def stopped(x):
        from jax.lax import stop_gradient

        return stop_gradient(jnp.tanh(x))

    assert_parity(THEIRS, jax_program(ours, X))
    assert_parity(THEIRS, jax_program(stopped, X), gradients=False)
    with pytest.raises(AssertionError, match="gradients: 1 of 1 differ"):
        assert_parity(THEIRS, jax_program(stopped, X))


def test_an_error_of_a_program_is_raised_as_it_is():
    with pytest.raises(ZeroDivisionError):
        assert_parity(THEIRS, jax_program(lambda x: x * (1 / 0), X))
