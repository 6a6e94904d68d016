"""The measured differences are within the tolerances, and the site has the same table."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from obscura_jax.interop.course_state import named_tensors
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt.lab import compare_implementations
from obscura_jax.parity.gpt.references import reference
from tests.support import faults
from tests.support.models import BIASED, IDS, model_of
from tests.support.tolerances import TOLERANCES, as_markdown

SECTIONS = {
    "intermediates and logits": "forward pass",
    "gradients": "gradients",
    "optimizer state after 3 steps": "optimizer after 3 steps",
}


@cache
def report(against="course"):
    params = model_of(BIASED)
    theirs = reference(against, BIASED, named_tensors(BIASED, params))
    return compare_implementations("x", BIASED, params, theirs, new_tokens=0)


def largest(quantity, dtype, against="course"):
    """Return the largest difference, without the keys' bias, whose true gradient is 0."""
    title = SECTIONS[quantity]
    (rows,) = (s.findings for s in report(against).sections if s.title == title)
    return max(getattr(row, dtype) for row in rows if "W_key.bias" not in row.name)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("quantity", SECTIONS)
def test_the_lab_is_within_the_tolerances(quantity, dtype):
    assert largest(quantity, dtype) <= TOLERANCES[quantity, dtype].allowed
    wrong = f"{faults.__file__}:OtherEpsilon"
    difference = largest(quantity, dtype, wrong)
    # In float32 the rounding of a gradient can hide another epsilon; the verdict does not miss it.
    assert difference > TOLERANCES[quantity, "float64"].allowed
    if quantity == "intermediates and logits":
        assert difference > TOLERANCES[quantity, dtype].allowed


def bfloat16_difference(eps):
    params = model_of(BIASED)
    module = reference("course", BIASED, named_tensors(BIASED, params)).build("float32")
    module.trf_blocks[0].norm1.eps = eps
    with torch.no_grad():
        theirs = module.to(torch.bfloat16)(torch.tensor(IDS)).float().numpy()
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    ours = np.asarray(GPTModel(BIASED).apply({"params": short}, IDS), np.float32)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


@pytest.mark.slow
def test_bfloat16_is_within_the_tolerance():
    allowed = TOLERANCES["logits", "bfloat16"].allowed
    assert bfloat16_difference(1e-5) <= allowed
    assert bfloat16_difference(10.0) > allowed


def test_tolerances_are_tight_and_documented():
    for tolerance in TOLERANCES.values():
        assert 3 <= tolerance.allowed / tolerance.measured <= 5
    page = Path(__file__).parents[1].joinpath("docs/explain/numerics.md").read_text("utf-8")
    assert as_markdown() in page
