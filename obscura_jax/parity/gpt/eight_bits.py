"""Compare a model with 8-bit weights with PyTorch on the same rounded weights.

The differences that rounding makes are expected; any other is a mistake. So PyTorch gets the
weights that the 8-bit ones stand for, in float32 and float64, and must have the same logits.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.decoding.prepared import prepare_params, widened
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt.prompts import stress_prompts
from obscura_jax.parity.gpt.references import Reference
from obscura_jax.parity.gpt.torch_capture import LOGITS, capture_torch

# Measured for 24 small models of random weights and the shipped one: at most 2.0 times.
_ALLOWED = 8  # times the rounding of PyTorch's own float32 logits


@dataclass(frozen=True)
class EightBits:
    """The comparison. Differences of logits are relative to the largest logit of a prompt.

    Attributes:
        source: name of the weights.
        against: name of the PyTorch side.
        difference: largest difference from PyTorch in float64 on the rounded weights.
        rounding: largest difference of PyTorch in float32 from float64, on the same weights.
        effect: largest change of PyTorch's float64 logits when the weights are rounded.
        kept: share of the positions whose most probable token stays the same when they are.
    """

    source: str
    against: str
    difference: float
    rounding: float
    effect: float
    kept: float

    @property
    def as_expected(self) -> bool:
        """True if the rounding of the weights explains all but float32's own rounding."""
        return self.difference <= _ALLOWED * self.rounding

    def as_text(self) -> str:
        """Return the figures and the verdict."""
        verdict = "differs from the rounded weights by more than float32 explains"
        if self.as_expected:
            verdict = "as expected from 8 bits"
        return "\n".join(
            (
                f"{self.source} with 8-bit weights in JAX, compared with {self.against}",
                f"logits, PyTorch with the rounded weights  {self.difference:.1e}",
                f"  PyTorch's own rounding to float32       {self.rounding:.1e}",
                f"effect of rounding the weights            {self.effect:.1e}",
                f"most probable tokens that stay the same   {self.kept:.1%}",
                f"verdict: {verdict}",
            )
        )


def compare_eight_bits(
    source: str,
    cfg: GPTConfig,
    params: Any,
    reference_of: Callable[[Mapping[str, NDArray[Any]]], Reference],
    *,
    seed: int = 0,
    end_of_text: int | None = None,
) -> EightBits:
    """Compare the logits of a model whose weights are rounded to 8 bits.

    Args:
        source: name of the weights, for the report.
        cfg: the model.
        params: its parameters, float32.
        reference_of: returns the PyTorch side with given weights, by their names in the course.
        seed: seed of the prompts.
        end_of_text: the id that ends a text; see `stress_prompts`.
    """
    prepared = prepare_params(params, weights="int8")
    given = reference_of(named_tensors(cfg, params))
    rounded = reference_of(named_tensors(cfg, widened(prepared)))
    prompts = stress_prompts(cfg, seed, end_of_text)

    def theirs(reference: Reference, dtype: Any) -> dict[str, NDArray[Any]]:
        module = reference.build(dtype)
        with reference.guest("fails on a prompt"):
            return {n: capture_torch(module, ids, [LOGITS])["logits"] for n, ids in prompts.items()}

    with jax.default_matmul_precision("highest"):
        apply = jax.jit(GPTModel(cfg).apply)
        ours = {n: np.asarray(apply({"params": prepared}, ids)) for n, ids in prompts.items()}
    exact, single = theirs(rounded, "float64"), theirs(rounded, "float32")
    before = theirs(given, "float64")
    kept = [exact[name].argmax(-1) == before[name].argmax(-1) for name in prompts]
    return EightBits(
        source=source,
        against=rounded.label,
        difference=max(_relative(ours[name], exact[name]) for name in prompts),
        rounding=max(_relative(single[name], exact[name]) for name in prompts),
        effect=max(_relative(exact[name], before[name]) for name in prompts),
        kept=float(np.concatenate([same.ravel() for same in kept]).mean()),
    )


def _relative(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(np.abs(a.astype(np.float64) - b).max() / (np.abs(b).max() or 1.0))
