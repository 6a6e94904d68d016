"""Constants rounded to float32 are not a difference; any other rounding to float32 is."""

import numpy as np
import pytest
import torch

from obscura_jax.parity.findings import Finding as EngineFinding
from obscura_jax.parity.findings import Place, Report, Verdict
from obscura_jax.parity.gpt import places
from obscura_jax.parity.gpt.compare import Finding, allow_float32
from obscura_jax.parity.gpt.report import verdict
from obscura_jax.parity.gpt.users_class import default_type
from obscura_jax.parity.trace import Source
from tests.test_parity_guests import compare_guest


# Measured if constants stay rounded: the GELU differs by 1.1e-8 of its largest entry.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["RoundedGelu", "KeptGelu"])
def test_a_rounded_constant_is_noted_and_is_not_a_difference(name):
    report = compare_guest(name)
    assert verdict(report) == "equal up to rounding"
    (note,) = (note for note in report.notes if "constant" in note)
    assert note.startswith("the module creates constants in PyTorch's default type, float32; ")
    change = float(note.partition("changes its float64 logits by ")[2].split()[0])
    assert 1e-10 < change < 1e-7  # measured: 4.4e-9


@pytest.mark.slow
def test_a_class_without_rounded_constants_has_no_note():
    assert not any("constant" in note for note in compare_guest("AsDictionary").notes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NearlyPiGelu", ""),  # wrong by 3.5e-9, less than the rounding of the constant
        ("OtherCubeGelu", "PyTorch's values are ours with 0.0447151 instead of 0.044715"),
        ("Float32Gelu", "PyTorch rounds to lower precision at guests.py:"),
        ("DigitsGelu", "with every operation in float64, both are equal up to 1e-09"),
        ("ExactFormGelu", "PyTorch's mul at guests.py:"),
    ],
)
def test_a_rounded_constant_does_not_hide_a_mistake(name, why):
    sentence = verdict(compare_guest(name))
    assert "differs, first at trf_blocks.0.ff.layers.1" in sentence
    assert why in sentence


def place(file, line):
    return Place("mul", "", Source(file, line), "", "", (3,))


CONSTANT = EngineFinding("constant", place("guests.py", 7), place("layers.py", 76))


def with_verdict(monkeypatch, verdict):
    report = Report(verdict, findings=(CONSTANT,))
    monkeypatch.setattr(places, "compare", lambda *sides, **options: report)


def test_differences_that_float32_constants_explain_are_equal(monkeypatch):
    """The class creates its constants in float32 by name, so the default type has no effect."""
    with_verdict(monkeypatch, Verdict.EQUAL_WITH_CONSTANTS)
    report = compare_guest("IntegerGelu")
    assert verdict(report) == "equal up to rounding"
    assert any(
        row.note.startswith("as much as float32") for s in report.sections for row in s.findings
    )
    note = "PyTorch rounds constants to float32, at guests.py:7; "
    assert any(text.startswith(note) for text in report.notes)
    with_verdict(monkeypatch, Verdict.DIFFERS)
    assert "first at trf_blocks.0.ff.layers.1, by " in verdict(compare_guest("IntegerGelu"))


def test_float32_constants_do_not_hide_a_larger_difference(monkeypatch):
    with_verdict(monkeypatch, Verdict.EQUAL_WITH_CONSTANTS)
    sentence = verdict(compare_guest("WrongGradient"))
    assert "first at trf_blocks.1.ff.layers.2.bias (gradients), by " in sentence


def test_only_differences_of_the_size_of_rounding_are_allowed():
    rounding = 1e-16
    sizes = {"equal": rounding, "small": 1e-7, "large": 1e-6, "nan": np.nan}
    rows = [Finding(n, 0.0, x, rounding, n == "equal", "own") for n, x in sizes.items()]
    allowed = allow_float32(rows)
    assert [row.equal for row in allowed] == [True, True, False, False]
    assert [row.note for row in allowed] == [
        "own",
        "as much as float32 constants explain",
        "own",
        "own",
    ]


def test_constants_are_created_in_float64():
    with default_type("float64"):
        assert torch.tensor(1 / 3).item() == 1 / 3
        assert torch.ones(3, dtype=torch.float64).float().dtype == torch.float32  # values stay
        assert torch.tensor(1 / 3, dtype=torch.float32).dtype == torch.float32
    with default_type("float32"):
        assert torch.tensor(1 / 3).item() != 1 / 3
    assert torch.get_default_dtype() == torch.float32
