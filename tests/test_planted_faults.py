"""A comparison finds planted faults, names both lines and a mend, and calls equal pairs equal."""

import json

import pytest

from tests.support import planted
from tests.support.planted import FAULTS, PAIRS, compared, outcome
from tests.support.planted_figure import RESULTS, table

RECORDED = json.loads(RESULTS.read_text(encoding="utf-8"))
# One fault of every pair; the others are slow together.
QUICK = {
    "epsilon of another library",
    "class token last",
    "relative bias subtracted",
    "bias of the router left out",
    "bridge transposed",
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_an_equal_pair_is_equal_and_so_are_its_gradients(pair):
    report = compared(pair)
    assert report.equal, str(report)
    assert report.gradients
    assert all(gradient.equal for gradient in report.gradients)
    assert all(finding.kind == "constant" for finding in report.findings)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in QUICK], ids=lambda f: f.name)
def test_a_planted_fault_is_found_placed_and_mended(fault):
    found = outcome(fault)
    assert found.found
    assert found.torch
    assert found.jax
    assert found.mend


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.pair}: {f.name}")
def test_every_planted_fault_has_the_recorded_outcome(fault):
    found = outcome(fault)
    recorded = next(r for r in RECORDED if (r["pair"], r["name"]) == (fault.pair, fault.name))
    assert found.found, str(found.report)
    assert (found.torch and found.jax) >= recorded["placed"], str(found.report)
    assert found.mend == recorded["mend"], str(found.report)


def test_the_recorded_outcomes_are_those_of_the_guide():
    assert len(RECORDED) == len(FAULTS) >= 40
    assert all(r["found"] for r in RECORDED)
    assert sum(r["placed"] for r in RECORDED) >= 38
    assert sum(bool(r["mend"]) for r in RECORDED) >= 25
    assert len({r["mend"] for r in RECORDED} - {""}) >= 15
    guide = planted.FOLDER.parents[1] / "docs" / "guides" / "compare.md"
    assert table(RECORDED) in guide.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 51))
def test_no_seed_gives_a_false_alarm(seed):
    report = compared(PAIRS[seed % len(PAIRS)], seed, gradients=False)
    assert report.equal, str(report)


def test_a_planted_line_is_there_once():
    for fault in FAULTS:
        with planted.planted(fault) as (module, line):
            assert line > 0
            assert module.build
