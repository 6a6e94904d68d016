"""A scalar of low precision means the short decimal, root or fraction that rounds to it."""

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obscura_jax.parity.constants import exact_value

EXACT = [
    *(1e-6, 1e-5, 0.1, 0.044715, 0.7, 10000.0, 1.702, 2.0**-24, 1 / 32768, 3e38, 1e-12),
    *(math.sqrt(2), 1 / math.sqrt(2), math.sqrt(64), 1 / math.sqrt(768), math.sqrt(12345)),
    *(1 / 3, 1 / 768, math.pi, math.pi / 180, 2 * math.pi, math.sqrt(2 / math.pi)),
    *(math.e, math.log(2), math.log(10000), 1 / math.pi),
]


@pytest.mark.parametrize("number", EXACT)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_float32_means_the_number_that_was_written(number, sign):
    rounded = np.float32(sign * number)
    found = exact_value(rounded)
    assert found.dtype == np.float64
    assert found == sign * number
    assert np.float32(found) == rounded
    after = np.nextafter(rounded, np.float32(np.inf))  # the control: the number next to it
    assert exact_value(after) != found


@given(st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_the_exact_value_rounds_to_the_scalar(x):
    with np.errstate(over="ignore"):
        assert np.float32(exact_value(np.float32(x))) == np.float32(x)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_lower_types_mean_the_shortest_decimal(dtype):
    assert exact_value(np.asarray(0.1, dtype)) == 0.1
    assert exact_value(np.asarray(0.1, dtype)) != float(np.asarray(0.1, dtype))


@pytest.mark.parametrize(
    "x", [np.float64(0.1), np.float64(np.float32(0.1)), np.int32(3), np.ones(3, np.float32), 0.5]
)
def test_everything_else_is_returned_unchanged(x):
    assert exact_value(x) is x
    assert exact_value(np.float32(np.inf)) == np.inf
    assert np.isnan(exact_value(np.float32(np.nan)))
