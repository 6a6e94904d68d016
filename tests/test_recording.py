"""A recording of one program takes its place in a comparison, also where its files are missing."""

import dataclasses
import json
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from obscura_jax.parity import recording
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.recording import read, record
from obscura_jax.parity.report import as_json, as_text
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.parity.trace import Source
from tests.support import pairs, planted
from tests.support.pairs import call

pair = pytest.fixture(pairs.pair)
EQUAL = ("rotary", "convolution")
CHANGED = {
    fault.name: fault
    for fault in planted.FAULTS
    if (fault.pair, fault.name)
    in (("rotary", "epsilon of another library"), ("convolution", "epsilon of Keras"))
}
SIDES = ("torch", "jax")


@pytest.fixture(autouse=True)
def as_by_default():
    with jax.numpy_rank_promotion("allow"):
        yield


@cache
def programs(name):
    """Return the two programs of a pair, or of a planted fault, whose JAX file is then deleted."""
    if name in EQUAL:
        return planted.programs(name)
    with planted.planted(CHANGED[name]) as (module, _):
        return planted.programs(CHANGED[name].pair, 0, module)


@cache
def live(name):
    """Return the report that needs no recording."""
    with jax.numpy_rank_promotion("allow"):
        return compare(*programs(name))


def recorded(program, path):
    record(program, path)
    return read(path)


def replaced(given, tmp_path, *sides):
    """Return both programs, with a recording in place of those that `sides` names."""
    return [
        recorded(program, tmp_path / f"{side}.parity") if side in sides else program
        for side, program in zip(SIDES, given, strict=True)
    ]


def content_of(trace):
    """Return everything in a trace as plain values; the arrays as bytes, with type and shape."""

    def plain(x):
        if isinstance(x, np.ndarray):
            return str(x.dtype), x.shape, x.tobytes()
        if dataclasses.is_dataclass(x):
            fields = (f.name for f in dataclasses.fields(x) if f.name != "text")
            return {name: plain(getattr(x, name)) for name in fields}
        if isinstance(x, dict):
            return {key: plain(value) for key, value in x.items()}
        return [plain(y) for y in x] if isinstance(x, list) else x

    names = ("side", "nodes", "outputs", "labels", "inputs", "parameters", "native", "random")
    return {name: plain(getattr(trace, name)) for name in names}


@pytest.mark.parametrize("side", SIDES)
def test_a_recording_is_the_trace(side, tmp_path):
    program = programs("rotary")[SIDES.index(side)]
    trace = trace_torch(program) if side == "torch" else trace_jax(program)
    again = recorded(program, tmp_path / "one.parity")
    assert content_of(again) == content_of(trace)
    assert again.fetch is None
    assert again.program == "Decoder"
    live_nodes = trace.ancestors(trace.outputs)
    assert set(again.kept) == live_nodes | set(trace.inputs)
    for i, x in trace.values(again.kept).items():
        assert (x.dtype, x.tobytes()) == (again.kept[i].dtype, again.kept[i].tobytes())
    node = again.nodes[again.outputs[0]]
    node.print = dataclasses.replace(node.print, rms=np.nextafter(node.print.rms, 2))
    assert content_of(again) != content_of(trace)


@pytest.mark.parametrize("sides", [("torch",), ("jax",), SIDES], ids="-".join)
@pytest.mark.parametrize("name", EQUAL)
def test_a_recording_of_an_equal_program_is_equal(name, sides, tmp_path):
    report = compare(*replaced(programs(name), tmp_path, *sides))
    assert report.verdict is Verdict.EQUAL
    assert report.outputs == live(name).outputs
    *notes, last = report.notes
    assert len(notes) == len(sides)
    assert last == "gradients were not compared: a side is a recording"


@pytest.mark.slow
@pytest.mark.parametrize("sides", [("torch",), ("jax",), SIDES], ids="-".join)
@pytest.mark.parametrize("name", CHANGED)
def test_a_recording_shows_the_same_first_place(name, sides, tmp_path):
    report = compare(*replaced(programs(name), tmp_path, *sides))
    expected = live(name)
    assert expected.findings[0].mend is not None
    assert report.verdict is expected.verdict is Verdict.DIFFERS
    if "jax" not in sides:  # the JAX side is changed and evaluated as without a recording
        assert report.findings == expected.findings
        return
    (finding,), first = report.findings, expected.findings[0]
    assert finding.mend is None
    assert not report.complete
    # A mend moves the place in JAX to the line that is to be changed.
    assert finding.torch == first.torch
    assert finding.jax.source.function == first.jax.source.function
    assert any("cannot be changed and run again" in note for note in report.notes)


def test_the_lines_of_missing_files_are_shown(tmp_path):
    name = "epsilon of Keras"
    with planted.planted(CHANGED[name]) as (module, _):
        both = replaced(planted.programs("convolution", 0, module), tmp_path, *SIDES)
    report = compare(*both)
    place = report.findings[0].jax
    assert not Path(place.source.file).exists()
    assert CHANGED[name].new in place.code
    assert place.code in as_text(report)
    shown = json.loads(as_json(report))["findings"][0]["jax"]["source"]
    assert shown.keys() == {"file", "line", "function"}
    # Negative control: without the recorded text, the line would be empty.
    assert planted.line_of(Source(place.source.file, place.source.line)) == ""


@pytest.mark.parametrize("name", CHANGED)
def test_values_beyond_the_budget_are_not_needed_to_find_the_place(name, tmp_path, monkeypatch):
    full = recorded(programs(name)[0], tmp_path / "full.parity")
    monkeypatch.setattr(recording, "BUDGET", 20_000)
    ours = programs(name)[1]
    theirs = recorded(programs(name)[0], tmp_path / "small.parity")
    assert {*theirs.outputs, *theirs.inputs} < set(theirs.kept) < set(full.kept)
    largest = max(x.nbytes for i, x in theirs.kept.items() if i not in theirs.outputs)
    assert largest < max(x.nbytes for x in full.kept.values())
    report, expected = compare(theirs, ours), live(name)
    assert report.verdict is Verdict.DIFFERS
    assert report.findings[0].torch == expected.findings[0].torch
    assert report.findings[0].mend == expected.findings[0].mend

    monkeypatch.setattr(recording, "BUDGET", 0)
    theirs = recorded(programs(name)[0], tmp_path / "smallest.parity")
    assert set(theirs.kept) == {*theirs.outputs, *theirs.inputs}
    assert compare(theirs, ours).findings[0].torch == expected.findings[0].torch


X = np.linspace(-2, 3, 35, dtype=np.float32).reshape(5, 7)


TABLE = np.linspace(0.1, 0.7, 7)


def rounded_pair(scale):
    """Return two programs of which JAX's has a table in float32, and its own scale."""
    theirs = torch_program(lambda x: torch.tanh(x * torch.from_numpy(TABLE)), torch.from_numpy(X))
    ours = jax_program(lambda x: jax.numpy.tanh(x * TABLE.astype(np.float32) * scale), X)
    return theirs, ours


def test_a_recording_with_a_rounded_constant_shows_no_other_place(tmp_path):
    theirs, ours = rounded_pair(1.0)
    assert compare(theirs, ours).verdict is Verdict.EQUAL_WITH_CONSTANTS
    report = compare(theirs, recorded(ours, tmp_path / "jax.parity"))
    assert report.verdict is Verdict.DIFFERS
    assert report.findings == ()
    assert any("a constant that one side rounds to float32" in note for note in report.notes)
    full = jax_program(lambda x: jax.numpy.tanh(x * np.float32(0.1)), X)
    theirs = torch_program(lambda x: torch.tanh(x * 0.1), torch.from_numpy(X))
    equal = compare(theirs, recorded(full, tmp_path / "jax.parity"))
    assert (equal.verdict, len(equal.notes)) == (Verdict.EQUAL, 2)


def test_a_recording_with_a_rounded_constant_shows_a_larger_difference(tmp_path):
    theirs, ours = rounded_pair(1.001)
    report = compare(theirs, recorded(ours, tmp_path / "jax.parity"))
    assert "scale" in report.findings[0].jax.code
    assert not any("a constant that one side rounds" in note for note in report.notes)


TEXT = """
import jax.numpy as jnp, numpy as np, torch
X = np.linspace(-2, 3, 35, dtype=np.float32).reshape(5, 7)

def torch_side():
    return lambda x: torch.tanh(2 * x), torch.from_numpy(X)

def jax_side():
    return lambda x: jnp.tanh(2 * x), X
"""


@pytest.mark.parametrize("side", SIDES)
def test_the_command_records_and_compares(side, pair, capsys):
    start, torch_side, jax_side = TEXT.split("def ")
    mine, other = (torch_side, jax_side) if side == "torch" else (jax_side, torch_side)
    pair(f"{start}def {mine}")
    printed = "obscura parity pair.py --against one.parity\n"
    assert call(capsys, "pair.py", "--record", "one.parity", "--side", side) == (0, printed, "")
    assert [path.name for path in Path().iterdir() if path.is_file()] == ["one.parity", "pair.py"]

    pair(f"{start}def {other}")
    code, out, err = call(capsys, "pair.py", "--against", "one.parity")
    assert (code, err) == (0, "")
    assert "side is a recording" in out
    assert out.endswith("verdict: equal\n")

    pair(f"{start}def {other}".replace("2 * x", "3 * x"))
    code, out, _ = call(capsys, "pair.py", "--against", "one.parity")
    assert code == 1
    assert "3 * x" in out
    assert "2 * x" in out  # of the file as it was when it was recorded
