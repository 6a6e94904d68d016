"""8-bit weights in JAX are compared with PyTorch on the rounded weights."""

import jax
import numpy as np
import pytest

from obscura_jax.cli.main import main
from obscura_jax.parity.gpt import eight_bits
from obscura_jax.parity.gpt.eight_bits import compare_eight_bits
from obscura_jax.parity.gpt.references import reference
from tests.support.models import BIASED, TIED, model_of


def compared(cfg=BIASED, seed=0):
    def reference_of(flat):
        return reference("course", cfg, flat, "small")

    return compare_eight_bits("small", cfg, model_of(cfg, seed), reference_of)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [BIASED, TIED], ids=["own head", "tied head"])
def test_the_rounding_of_the_weights_is_expected(cfg):
    found = compared(cfg)
    assert found.as_expected
    assert found.difference < 1e-5
    assert found.effect > 1e-3
    assert "verdict: as expected from 8 bits" in found.as_text()


@pytest.mark.parametrize("fault", ["scale", "rounding"])
def test_other_weights_are_not_expected(fault, monkeypatch):
    right = eight_bits.prepare_params

    def wrong(params, **how):
        prepared = right(params, **how)
        inner = prepared["trf_blocks"]["1"]["ff"]["layers"]["2"]
        if fault == "scale":
            inner["scale"] = inner["scale"].at[3].multiply(1.01)
        else:
            inner["quantized"] = inner["quantized"].at[3, 1].add(1)
        return prepared

    # PyTorch keeps the right weights.
    rounded = eight_bits.widened(right(model_of(BIASED), weights="int8"))
    monkeypatch.setattr(eight_bits, "prepare_params", wrong)
    monkeypatch.setattr(eight_bits, "widened", lambda params: rounded)
    found = compared()
    assert not found.as_expected
    assert "verdict: differs" in found.as_text()


def test_widened_weights_are_the_numbers_of_the_rounded_ones():
    params = model_of(BIASED)
    widened = eight_bits.widened(eight_bits.prepare_params(params, weights="int8"))
    assert jax.tree.structure(widened) == jax.tree.structure(params)
    weight = params["trf_blocks"]["0"]["att"]["W_query"]["weight"]
    apart = np.abs(widened["trf_blocks"]["0"]["att"]["W_query"]["weight"] - weight)
    half_steps = np.abs(weight).max(axis=1, keepdims=True) / 127 / 2
    assert apart.max() > 0
    assert (apart <= half_steps * 1.001).all()


def test_the_command_says_what_to_expect(capsys, native):
    main(["parity", str(native), "--weights", "int8"])
    assert "verdict: as expected from 8 bits" in capsys.readouterr().out
    for more in (("--steps", "1"), ("--json", "x.json"), ("--html", "x.html")):
        with pytest.raises(SystemExit) as end:
            main(["parity", str(native), "--weights", "int8", *more])
        assert end.value.code == 2
        assert "--weights compares only logits; leave out" in capsys.readouterr().err


def test_the_command_exits_with_1_if_they_differ(monkeypatch, native):
    monkeypatch.setattr(eight_bits, "_ALLOWED", 0)
    with pytest.raises(SystemExit) as end:
        main(["parity", str(native), "--weights", "int8"])
    assert end.value.code == 1
