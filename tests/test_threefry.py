"""NumPy draws the random numbers of `jax.random`, bit for bit."""

import jax
import numpy as np
import pytest

from obscura_jax.rng import threefry

SHAPE = (1009, 997)  # a million draws, odd sizes


@pytest.fixture(params=[0, 123, 2**31, 2**32 - 1])
def keys(request):
    typed = jax.random.key(np.uint32(request.param))
    ours = threefry.key(request.param)
    np.testing.assert_array_equal(jax.random.key_data(typed), ours)
    return typed, ours


def same(theirs, ours):
    theirs = np.asarray(theirs)
    return (theirs.dtype, theirs.shape, theirs.tobytes()) == (
        ours.dtype,
        ours.shape,
        ours.tobytes(),
    )


@pytest.mark.parametrize("data", [0, 1, 2**31, 2**32 - 1])
def test_fold_in(keys, data):
    theirs = jax.random.key_data(jax.random.fold_in(jax.random.clone(keys[0]), np.uint32(data)))
    assert same(theirs, threefry.fold_in(keys[1], data))
    assert not same(theirs, threefry.fold_in(keys[1], data ^ 1))


@pytest.mark.parametrize("shape", [(), (1,), (5, 0), SHAPE])
def test_bits_and_uniform(keys, shape):
    assert same(jax.random.bits(jax.random.clone(keys[0]), shape), threefry.bits(keys[1], shape))
    theirs = jax.random.uniform(jax.random.clone(keys[0]), shape)
    ours = threefry.uniform(keys[1], shape)
    assert same(theirs, ours)
    if ours.size:  # a difference in the last bit is noticed
        assert not same(theirs, np.nextafter(ours, np.float32(2)))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_bernoulli(keys, p):
    theirs = jax.random.bernoulli(jax.random.clone(keys[0]), p, SHAPE)
    assert same(theirs, threefry.bernoulli(keys[1], p, SHAPE))
    assert not same(theirs, threefry.bernoulli(keys[1], p + 1e-5, SHAPE))


def test_gumbel(keys):
    theirs = jax.random.gumbel(jax.random.clone(keys[0]), SHAPE)
    ours = threefry.gumbel(keys[1], SHAPE)
    assert same(theirs, ours)
    u = threefry.uniform(keys[1], SHAPE, minval=float(np.finfo(np.float32).tiny))
    assert not same(theirs, -np.log(-np.log(u)))  # another logarithm is noticed


def test_float64(keys, x64):
    typed = [jax.random.clone(keys[0]) for _ in range(4)]
    assert same(jax.random.bits(typed[0], SHAPE, "uint64"), threefry.bits(keys[1], SHAPE, 64))
    theirs = jax.random.uniform(typed[1], SHAPE, "float64")
    assert same(theirs, threefry.uniform(keys[1], SHAPE, np.float64))
    dropped = jax.random.bernoulli(typed[2], 0.9, SHAPE)
    assert same(dropped, threefry.bernoulli(keys[1], 0.9, SHAPE, np.float64))
    assert not same(dropped, threefry.bernoulli(keys[1], 0.9, SHAPE))
    noise = np.asarray(jax.random.gumbel(typed[3], SHAPE, "float64"))
    # Measured: 4.5e-16 of numbers up to 20; the last bits of the logarithm differ.
    np.testing.assert_allclose(threefry.gumbel(keys[1], SHAPE, np.float64), noise, 0, 1e-14)


def test_bad_arguments_are_errors():
    with pytest.raises(ValueError, match="seed must be in"):
        threefry.key(-1)
    with pytest.raises(ValueError, match="32 or 64, got 16"):
        threefry.bits(threefry.key(0), (2,), 16)
    with pytest.raises(ValueError, match="float32 or float64, got float16"):
        threefry.uniform(threefry.key(0), (2,), np.float16)
