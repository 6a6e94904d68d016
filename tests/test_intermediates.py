"""Calls that other folders intercept by name happen while the model is traced."""

import jax
import pytest

from obscura_jax.nn import intermediates, scan
from obscura_jax.nn.intermediates import apply_tapped, names, tapped
from obscura_jax.nn.model import GPTModel, TransformerBlock
from obscura_jax.nn.parameters import init_shapes
from obscura_jax.scale.mesh import ACTIVATIONS
from tests.support.models import BIASED, IDS

MODEL = GPTModel(BIASED)
SHAPES = init_shapes(BIASED)


def traced_names(function, *args):
    """Return the names that `function` passes through a tap while it is traced, in order."""
    met = []

    def tap(name, value):
        met.append(name)
        return value

    with tapped(tap):
        jax.eval_shape(function, *args)
    return met


def stacked_logits(params, ids):
    x = scan.hidden_states(MODEL, params, ids)
    return MODEL.apply({"params": params}, x, method="output_head")


def missing_names():
    """Return the names that the parity lab or a mesh relies on, but that no trace meets."""
    seen = []

    def tap(name, value):
        seen.append(name)
        return value

    jax.eval_shape(lambda params: apply_tapped(MODEL, params, IDS, tap), SHAPES)
    plain = traced_names(lambda params: MODEL.apply({"params": params}, IDS), SHAPES)
    stacked = traced_names(stacked_logits, scan.stack_blocks(SHAPES), IDS)
    in_block = {name.removeprefix("trf_blocks.0.") for name in plain}
    blocks = {"TransformerBlock" if name == "trf_blocks.0" else name for name in in_block}
    return (
        [name for name in names(BIASED) if seen.count(name) != 1],
        [name for name in ACTIVATIONS if name not in blocks],
        [name for name in ACTIVATIONS if name not in stacked],
    )


def test_every_intercepted_name_is_met_once_per_call():
    assert missing_names() == ([], [], [])


@pytest.mark.parametrize("call", intermediates.VALUE_NAMES)
def test_a_renamed_module_or_method_is_noticed(call, monkeypatch):
    others = {key: name for key, name in intermediates.VALUE_NAMES.items() if key != call}
    monkeypatch.setattr(intermediates, "VALUE_NAMES", others)
    assert missing_names() != ([], [], [])


def test_a_renamed_block_class_is_noticed():
    try:
        TransformerBlock.__name__ = "Block"
        assert missing_names() != ([], [], [])
    finally:
        TransformerBlock.__name__ = "TransformerBlock"
