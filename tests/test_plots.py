"""Figures show the given numbers, and wrong numbers of names are errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import plots
from obscura_jax.nn.attention import causal_mask
from obscura_jax.nn.layers import gelu

WORDS = ["a", " b", "$x$", "\n", "é"]


def drawn(figure):
    """Draw a figure without warnings, and return the arrays of its images, panel by panel."""
    figure.canvas.draw()
    return [np.asarray(image.get_array()) for panel in figure.axes for image in panel.images]


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_attention_map():
    weights = np.random.default_rng(0).random((3, 5, 5)).astype(np.float32)
    figure = plots.attention_map(jnp.asarray(weights), WORDS, title="heads")
    np.testing.assert_allclose(drawn(figure)[:3], weights)
    assert names(figure.axes[1].xaxis) == ["a", "␣b", "$x$", "\\n", "é"]
    assert names(figure.axes[1].yaxis) == ["a", "␣b", "$x$", "\\n", "é"]
    assert figure.axes[0].get_xlabel() == "key"
    one = drawn(plots.attention_map(causal_mask(5), WORDS))[0]
    np.testing.assert_array_equal(one, np.tril(np.ones((5, 5))))


@pytest.mark.parametrize("shape", [(5,), (4, 4), (5, 4), (2, 3, 5, 5)])
def test_weights_of_another_shape_than_the_tokens_are_errors(shape):
    with pytest.raises(ValueError, match="for 5 tokens"):
        plots.attention_map(np.ones(shape), WORDS)


def test_heat_map():
    table = np.array([[0.1, 0.9, 0.2], [0.3, 0.4, 0.5]])
    cells = [["a", "b", "$"], ["d", "e", "f"]]
    figure = plots.heat_map(table, ["low", "high"], ["x", "y", "z"], cells=cells, title="t")
    np.testing.assert_array_equal(drawn(figure)[0], table)
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.texts] == ["a", "b", "$", "d", "e", "f"]
    assert not panel.yaxis_inverted()  # the first row is at the bottom
    signed = plots.heat_map(-table, ["low", "high"], ["x", "y", "z"]).axes[0].images[0]
    assert signed.get_clim() == (-0.9, 0.9)
    with pytest.raises(ValueError, match=r"have shape \(2, 3\), .* 2 row names and 2 column"):
        plots.heat_map(table, ["low", "high"], ["x", "y"])


def test_function_curves_draw_the_derivative():
    figure = plots.function_curves({"square": lambda x: x * x, "GELU": gelu}, -1, 1)
    values, slopes = figure.axes
    x, y = values.lines[0].get_data()
    np.testing.assert_allclose(y, x * x, atol=1e-6)
    x, y = slopes.lines[0].get_data()
    np.testing.assert_allclose(y, 2 * x, atol=1e-6)
    assert [text.get_text() for text in values.get_legend().get_texts()] == ["square", "GELU"]


def test_gradient_bars():
    figure = plots.gradient_bars({"one": [1e-4, 1e-2], "two": [0.5, 0.25]})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1e-4, 1e-2, 0.5, 0.25]
    assert figure.axes[0].get_yscale() == "log"
    assert names(figure.axes[0].xaxis) == ["layer 0", "layer 1"]


def test_probability_bars_keep_one_order():
    first, second = np.array([0.1, 0.6, 0.3]), np.array([0.0, 0.5, 0.5])
    figure = plots.probability_bars({"all": first, "cut": second}, ["x", "y", "z"], top=2)
    widths = [[bar.get_width() for bar in panel.patches] for panel in figure.axes]
    assert widths == [[0.6, 0.3], [0.5, 0.5]]
    assert names(figure.axes[0].yaxis) == ["y", "z"]
    assert figure.axes[1].get_title() == "cut\n2 tokens left"


def test_window_diagram():
    (grid,) = drawn(plots.window_diagram(list("abcdef"), max_length=2, stride=3))
    np.testing.assert_array_equal(grid, [[1, 1, 2, 0, 0, 0], [0, 0, 0, 1, 1, 2]])


def test_cache_diagram_counts_computed_positions():
    figure = plots.cache_diagram(["a", "b", "c"], ["x", "y", "z"])
    again, cached = drawn(figure)
    np.testing.assert_array_equal(again, [[2, 2, 2, 0, 0], [2, 2, 2, 2, 0], [2, 2, 2, 2, 2]])
    np.testing.assert_array_equal(cached, [[2, 2, 2, 0, 0], [1, 1, 1, 2, 0], [1, 1, 1, 1, 2]])
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["re-read: 12 positions computed", "cached: 5 positions computed"]


def test_key_tree():
    figure = plots.key_tree({"root": {"left": {}, "right": {"leaf": {}}}})
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places == {"root": (0.5, 0), "left": (0, -1), "right": (1, -1), "leaf": (1, -2)}
    assert len(figure.axes[0].lines) == 3


def test_loss_curves():
    rows = [{"step": 0, "loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 2.5}]
    training, validation = plots.loss_curves(rows).axes[0].lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, 3], [2, 2]])
    np.testing.assert_array_equal(validation.get_xydata(), [[2, 2.5]])
