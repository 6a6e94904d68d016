"""Constants rounded to float32 are not a difference; any other rounding to float32 is."""

import numpy as np
import pytest
import torch

from obscura_jax.parity.gpt.constants import Constants
from obscura_jax.parity.gpt.report import verdict
from tests.test_parity_guests import compare_guest


# Measured without exact constants: the GELU differs by 1.1e-8 of its largest entry.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["RoundedGelu", "KeptGelu", "IntegerGelu"])
def test_a_rounded_constant_is_noted_and_is_not_a_difference(name):
    report = compare_guest(name)
    assert verdict(report) == "equal up to rounding"
    (note,) = (note for note in report.notes if "constant" in note)
    place = "Kept.__init__" if name == "KeptGelu" else f"{note.split('.')[0]}.root"
    assert note.startswith(f"{place} (guests.py:")
    change = float(note.partition("changes the float64 logits by ")[2].split()[0])
    assert 1e-10 < change < 1e-7  # measured: 1.5e-9 to 1.5e-8


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NearlyPiGelu", ""),  # wrong by 3.5e-9, less than the rounding of the constant
        ("OtherCubeGelu", ""),
        ("Float32Gelu", "as if computed in float32 there"),
        ("DigitsGelu", "the root of 2/pi cut to 0.79788456"),
        ("ExactFormGelu", "the exact GELU, by the error function"),
    ],
)
def test_a_rounded_constant_does_not_hide_a_mistake(name, why):
    sentence = verdict(compare_guest(name))
    assert "differs, first at trf_blocks.0.ff.layers.1" in sentence
    assert f"in float64: {why}" in sentence


def run(program, dtype="float64", **options):
    constants = Constants(**options)
    with constants.exact(dtype):
        return program(), constants


THIRD = np.float64(1) / 3


@pytest.mark.parametrize(
    ("program", "exact"),
    [
        (lambda: torch.tensor(1 / 3), THIRD),
        (lambda: torch.tensor(1 / 3, dtype=torch.float32), THIRD),
        (lambda: torch.tensor(1 / 3).float(), THIRD),
        (lambda: torch.tensor(1 / 3).to(torch.float32), THIRD),
        (lambda: torch.full((), 1 / 3), THIRD),
        (lambda: torch.tensor(1) / 3, THIRD),
        (lambda: torch.tensor(3).float().reciprocal(), THIRD),
        (lambda: torch.sqrt(torch.tensor(2)), np.sqrt(2.0)),
        (lambda: torch.tensor(2.0).sqrt().add_(1).sub(1).to("cpu"), np.sqrt(2.0)),
    ],
)
def test_a_constant_has_all_its_digits(program, exact):
    x, constants = run(program)
    assert x.dtype == torch.float64
    assert x.item() == pytest.approx(exact, rel=4e-16, abs=0)  # measured: 3.2e-16
    assert len(constants.found) == 1
    for dtype, options in (("float32", {}), ("float64", {"as_written": True})):
        x, constants = run(program, dtype, **options)
        assert x.dtype == torch.float32
        assert 1e-9 < abs(x.item() / exact - 1) < 2e-7
        assert not constants.found


@pytest.mark.parametrize(
    "program",
    [
        lambda: torch.tensor([1 / 3]),  # a tensor with an axis affects the type of results
        lambda: torch.ones(3, dtype=torch.float64).float().mean() / 3,
        lambda: torch.full((2,), 1 / 3).sum(),
        lambda: torch.einsum("i,i->", [torch.full((2,), 1 / 3), torch.ones(2)]),
        lambda: torch.tensor(1e-46),  # 0 in float32, so the error is not rounding
        lambda: torch.rand(()),
        lambda: torch.tensor(1 / 3) - torch.tensor(0.33333334),  # rounding error only
        lambda: torch.stack([torch.tensor(1 / 3)]),
        lambda: torch.tensor(1 / 3).expand(2) * torch.ones(2),
    ],
)
def test_other_float32_values_stay_float32(program):
    (x, _), y = run(program), program()
    assert x.dtype == torch.float32
    assert torch.equal(x, y) or program().item() != y.item()  # except random numbers


def test_a_number_read_from_a_constant_has_all_its_digits():
    assert run(lambda: torch.tensor(1 / 3).item())[0] == THIRD
    assert run(lambda: float(torch.tensor(1 / 3)))[0] == THIRD
    assert run(lambda: torch.tensor(1 / 3).to(torch.float64).item())[0] == THIRD
    assert run(lambda: torch.tensor(1 / 3) > 0)[0].dtype == torch.bool


def test_an_exact_constant_is_not_collected():
    x, constants = run(lambda: torch.tensor(0.5) * 3)
    assert x.item() == 1.5
    assert not constants.found
    assert torch.get_default_dtype() == torch.float32
