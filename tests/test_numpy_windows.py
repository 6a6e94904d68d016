"""Convolutions and window reductions in NumPy give JAX's results, in float64."""

import jax
import numpy as np
import pytest
from jax import lax

from obscura_jax.parity import numpy_kernels

DRAWN = np.random.default_rng(0)
DEFAULTS = {
    "strides": (1, 1),
    "padding": ((0, 0), (0, 0)),
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "groups": 1,
    "layout": ("NCHW", "OIHW", "NCHW"),
}
CONVOLUTIONS = [
    {},
    {"strides": (2, 3)},
    {"padding": ((1, 2), (0, 3))},
    {"rhs_dilation": (2, 1)},
    {"lhs_dilation": (2, 3), "padding": ((1, 1), (2, 0))},
    {"groups": 2},
    {"groups": 4, "strides": (2, 1), "padding": ((1, 1), (1, 1))},
    {"layout": ("NHWC", "HWIO", "NHWC")},
    {"layout": ("HWNC", "IOHW", "NHWC"), "groups": 2, "rhs_dilation": (1, 2)},
]
WINDOWS = [
    {},
    {"strides": (1, 2, 3)},
    {"padding": ((0, 0), (1, 2), (0, 1))},
    {"window_dilation": (1, 2, 2)},
    {"base_dilation": (1, 2, 3)},
]
REDUCTIONS = {
    "reduce_window_max": (lax.max, -np.inf),
    "reduce_window_min": (lax.min, np.inf),
    "reduce_window_sum": (lax.add, 0.0),
}


def equation(name, function, *arguments):
    """Return the parameters of a primitive in a function, and the function's result."""
    with jax.enable_x64(True):
        eqns = jax.make_jaxpr(function)(*arguments).jaxpr.eqns
        (params,) = (eqn.params for eqn in eqns if eqn.primitive.name == name)
        return params, np.asarray(function(*arguments))


def assert_close(found, expected, atol=1e-13):
    """Compare two arrays; measured: 4e-15, because sums have another order."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def arranged(x, layout, axes):
    """Return an array whose axes have the order of `axes` in another order."""
    return x.transpose([axes.index(axis) for axis in layout]).copy()


@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_convolution_gives_the_result_of_jax(options):
    how = DEFAULTS | options
    x = arranged(DRAWN.normal(size=(3, 4, 9, 11)), how["layout"][0], "NCHW")
    kernel = DRAWN.normal(size=(8, 4 // how["groups"], 3, 2))
    kernel = arranged(kernel, how["layout"][1], "OIHW")

    def convolve(x, kernel):
        return lax.conv_general_dilated(
            x,
            kernel,
            how["strides"],
            how["padding"],
            how["lhs_dilation"],
            how["rhs_dilation"],
            how["layout"],
            how["groups"],
        )

    params, expected = equation("conv_general_dilated", convolve, x, kernel)
    (found,) = numpy_kernels.apply("conv_general_dilated", params, [x, kernel])
    assert_close(found, expected)
    (other,) = numpy_kernels.apply("conv_general_dilated", params, [x, kernel[::-1]])
    with pytest.raises(AssertionError):
        assert_close(other, expected)


@pytest.mark.parametrize("options", WINDOWS, ids=str)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_window_reduction_gives_the_result_of_jax(name, options):
    how = {"strides": (1, 1, 1), "padding": ((0, 0),) * 3} | options
    computation, start = REDUCTIONS[name]
    x = DRAWN.normal(size=(3, 7, 11))

    def reduce(x):
        return lax.reduce_window(
            x,
            np.float64(start),
            computation,
            (1, 2, 3),
            how["strides"],
            how["padding"],
            how.get("base_dilation"),
            how.get("window_dilation"),
        )

    params, expected = equation(name, reduce, x)
    (found,) = numpy_kernels.apply(name, params, [x])
    assert_close(found, expected)
    (other,) = numpy_kernels.apply(name, params, [x[:, ::-1]])
    with pytest.raises(AssertionError):
        assert_close(other, expected)


def test_what_numpy_cannot_compute_is_left_to_jax():
    x, kernel = DRAWN.normal(size=(4, 4, 9, 11)), DRAWN.normal(size=(8, 4, 3, 2))
    cropped = ((-1, 0), (0, 0))
    params, _ = equation(
        "conv_general_dilated",
        lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), cropped),
        x,
        kernel,
    )
    assert numpy_kernels.apply("conv_general_dilated", params, [x, kernel]) is None
    batches = {**params, "padding": ((0, 0), (0, 0)), "batch_group_count": 2}
    assert numpy_kernels.apply("conv_general_dilated", batches, [x, kernel]) is None
    complete = {**batches, "batch_group_count": 1}
    assert numpy_kernels.apply("conv_general_dilated", complete, [x, kernel]) is not None
