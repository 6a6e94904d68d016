"""Relations of two arrays: factors, offsets, signs, orders of axes, and their distance."""

import math

import numpy as np
import pytest

from obscura_jax.parity.relation import apart, arrangement, arrangements, correlation, relation, rms

X = np.random.default_rng(0).normal(size=(3, 5, 7))


@pytest.mark.parametrize(
    ("ours", "words"),
    [
        (X, "the same values"),
        (np.random.default_rng(1).permutation(X.reshape(-1)), "the same values"),
        (-X, "equal up to a sign"),
        (X / 8, "JAX's is PyTorch's times 0.125 (1/8)"),
        (X / math.sqrt(7), "JAX's is PyTorch's times 0.37796447 (1/sqrt(7))"),
        (-X * 0.75, "JAX's is PyTorch's times -0.75 (-3/4)"),
        (X + 0.0625, "JAX's is PyTorch's plus 0.0625 (1/16)"),
        (X * 2, "JAX's is PyTorch's times 2"),
        (X + 1e-3 * np.sin(X), "close"),
    ],
)
def test_a_relation_is_put_into_words(ours, words):
    found = relation(X, ours).words
    if words.startswith("close"):
        assert found.startswith("close: at most ")
        assert 3e-4 < float(found.split()[3]) < 3e-3  # measured: 1e-3
    else:
        assert found.replace("1/sqrt(64)", "1/8").replace("1/sqrt(256)", "1/16") == words


def test_unrelated_arrays_have_no_relation():
    assert relation(X, X**2) is None
    assert relation(X, X[1:]) is None
    assert relation(X, np.zeros(X.shape)) is None
    assert relation(X, X * 1e200) is None  # its square overflows
    assert relation(X, X * 1e100).factor == pytest.approx(1e100, rel=1e-12)


def test_numbers_of_a_relation():
    assert relation(X, 0.5 * X).factor == pytest.approx(0.5, rel=1e-12)
    assert relation(X, X + 3).offset == pytest.approx(3, rel=1e-12)
    assert relation(X, X + 3).factor is None


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_an_order_of_axes_is_found(order):
    ours = X.transpose(order)
    assert arrangement(X, ours) == order
    assert arrangement(X, ours.reshape(-1)) == order
    assert arrangement(X, ours[::-1]) is None


def test_arrangements_start_with_the_order_itself():
    found = list(arrangements(X, (7, 15)))
    assert found[0][0] == (0, 1, 2)
    assert len({axes for axes, _ in found}) == len(found) == math.factorial(3)
    assert all(x.shape == (7, 15) for _, x in found)
    assert list(arrangements(X, (7, 14))) == []


def test_the_distance_is_relative_to_the_root_mean_square():
    y = X.copy()
    y[1, 2, 3] += 0.5
    assert apart(X, y) == pytest.approx(0.5 / np.sqrt(np.mean(X**2)))
    assert apart(1e-9 * X, 1e-9 * y) == pytest.approx(apart(X, y))
    assert apart(X, X) == 0
    assert apart(np.zeros(3), np.full(3, 0.5)) == 1
    assert apart(np.zeros((0, 3)), np.zeros((0, 3))) == 0


def test_the_distance_of_numbers_whose_squares_overflow():
    y = X.copy()
    y[1, 2, 3] += 0.5
    assert apart(1e200 * X, 1e200 * y) == pytest.approx(apart(X, y))
    assert apart(1e200 * X, 1e200 * X) == 0


def test_nan_and_infinity_are_equal_to_themselves_only():
    x, y = X.copy(), X.copy()
    x[0, 0, 0] = y[0, 0, 0] = np.nan
    x[0, 0, 1] = y[0, 0, 1] = -np.inf
    assert apart(x, y) == 0
    y[0, 0, 1] = np.inf
    assert apart(x, y) == math.inf
    y[0, 0, 1], y[0, 0, 0] = -np.inf, 0
    assert apart(x, y) == math.inf


@pytest.mark.parametrize("dtype", [np.int32, np.bool_])
def test_integers_are_equal_or_not(dtype):
    x = np.arange(5).astype(dtype)
    assert (apart(x, x), apart(x, ~x)) == (0, 1)


def test_correlation():
    assert correlation(X, 3 * X + 1) == pytest.approx(1)
    assert correlation(X, -X) == pytest.approx(-1)
    assert abs(correlation(X, X[::-1])) < 0.5
    assert correlation(X, np.ones(X.shape)) == 0


def test_the_correlation_of_values_whose_sums_overflow():
    """As those of scores, of which half are masked by the least number of their dtype."""
    x = np.where(X > 0, X, np.finfo(np.float64).min)
    assert correlation(x, x) == pytest.approx(1)
    assert abs(correlation(x, x[::-1])) < 0.5


def test_the_rms():
    assert rms(X) == pytest.approx(np.sqrt(np.mean(X**2)))
    assert rms(1e200 * X) == pytest.approx(1e200 * rms(X))
    assert rms(np.array([3.0, np.nan, -np.inf, 4.0])) == pytest.approx(np.sqrt(12.5))
    assert rms(np.zeros(0)) == 0
    assert rms(np.array([2, 2], np.int32)) == 2
