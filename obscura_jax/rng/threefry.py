"""JAX's random numbers in NumPy: the same key produces the same bits, without JAX.

With them a PyTorch model can drop the same values as the JAX model and sample with the same noise.
The generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy
as 1, 2, 3"). Its counters are those of `jax.random` with the default, partitionable keys. A key is
two 32-bit words, (2,) uint32, as `jax.random.key_data` returns them.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

Key = NDArray[np.uint32]
Floats = NDArray[Any]
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)
# The Cephes approximation of log(1 + t), highest power first, and log(2) in two parts.
_LOG = [
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
]  # fmt: skip
_LOG2_HIGH, _LOG2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_MANTISSA = {np.dtype(np.float32): 23, np.dtype(np.float64): 52}


def key(seed: int) -> Key:
    """Return the key of a seed in [0, 2**32), as `jax.random.key(seed)` does; else ValueError."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must be in 0..{2**32 - 1}, got {seed}")
    return np.array([0, seed], np.uint32)


def fold_in(key: Key, data: int) -> Key:
    """Return a key derived from a key and a 32-bit number."""
    return np.stack(_threefry(key, np.zeros((), np.uint32), np.asarray(data % 2**32, np.uint32)))


def bits(key: Key, shape: tuple[int, ...] = (), width: int = 32) -> NDArray[Any]:
    """Return random bits as unsigned integers of 32 or 64 bits."""
    high, low = _threefry(key, *_counts(shape))
    if width == 64:
        return (high.astype(np.uint64) << np.uint64(32)) | low
    if width != 32:
        raise ValueError(f"width must be 32 or 64, got {width}")
    return high ^ low


def uniform(
    key: Key, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float32, minval: float = 0.0
) -> Floats:
    """Return numbers in [minval, 1), of type float32 or float64."""
    dtype = np.dtype(dtype)
    if dtype not in _MANTISSA:
        raise ValueError(f"dtype must be float32 or float64, got {dtype}")
    width = dtype.itemsize * 8
    mantissa = bits(key, shape, width) >> np.asarray(width - _MANTISSA[dtype], f"u{dtype.itemsize}")
    one = np.ones((), dtype)
    numbers = (mantissa | one.view(mantissa.dtype)).view(dtype) - one
    least = np.asarray(minval, dtype)
    return np.maximum(least, numbers * (one - least) + least)


def bernoulli(
    key: Key, p: float = 0.5, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float32
) -> NDArray[np.bool_]:
    """Return True with probability `p`; pass `dtype=np.float64` to match JAX with x64 enabled."""
    return np.asarray(uniform(key, shape, dtype) < np.asarray(p, dtype))


def gumbel(key: Key, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float32) -> Floats:
    """Return Gumbel noise, -log(-log(u)): the argmax of logits plus noise samples their softmax.

    In float32 the bits are those of XLA on a CPU. In float64 and on accelerators, where logarithms
    are computed differently, the last one or two bits may differ.
    """
    u = uniform(key, shape, dtype, minval=float(np.finfo(np.dtype(dtype)).tiny))
    log = _log_float32 if u.dtype == np.float32 else np.log
    return np.asarray(-log(-log(u)))


def _counts(shape: tuple[int, ...]) -> tuple[Key, Key]:
    count = np.arange(math.prod(shape), dtype=np.uint64).reshape(shape)
    return (count >> np.uint64(32)).astype(np.uint32), count.astype(np.uint32)


def _threefry(key: Key, x: Key, y: Key) -> tuple[Key, Key]:
    """Encrypt the counter, two words, with the key."""
    first, second = np.asarray(key, np.uint32)
    schedule = (first, second, first ^ second ^ _PARITY)
    with np.errstate(over="ignore"):  # addition modulo 2**32 is intended
        x, y = x + schedule[0], y + schedule[1]
        for turn in range(5):
            for rotation in _ROTATIONS[turn % 2]:
                x = x + y
                y = (y << np.uint32(rotation)) | (y >> np.uint32(32 - rotation))
                y = x ^ y
            x = x + schedule[(turn + 1) % 3]
            y = y + schedule[(turn + 2) % 3] + np.uint32(turn + 1)
    return x, y


def _log_float32(x: Floats) -> Floats:
    """Return the logarithm of positive normal numbers, rounded at each step as by XLA on a CPU."""
    pattern = x.view(np.uint32)
    exponent = ((pattern >> np.uint32(23)).astype(np.int32) - 126).astype(np.float32)
    t = ((pattern & np.uint32(0x007FFFFF)) | np.uint32(0x3F000000)).view(np.float32)  # [0.5, 1)
    small = t < np.float32(math.sqrt(0.5))
    exponent = exponent - small.astype(np.float32)
    t = np.where(small, t + t, t) - np.float32(1)
    square = t * t
    cube = square * t
    parts = [_fma(_fma(t, a, b), t, c) for a, b, c in (_LOG[:3], _LOG[3:6], _LOG[6:])]
    polynomial = _fma(_fma(parts[0], cube, parts[1]), cube, parts[2])
    rest = _fma(polynomial, cube, _LOG2_LOW * exponent)
    return _fma(exponent, _LOG2_HIGH, _fma(square, np.float32(-0.5), t) + rest)


def _fma(a: Floats, b: Floats | np.float32, c: Floats | np.float32) -> Floats:
    """Return a * b + c in float32, rounded once.

    float64 holds the product exactly. The sum is rounded to odd, so that rounding it to float32
    gives the result of a single rounding (Boldo & Melquiond 2008).
    """
    product, addend = a.astype(np.float64) * b, np.asarray(c, np.float64)
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.copysign(np.inf, lost))
    return np.asarray(np.where((lost != 0) & even, odd, total), np.float32)
