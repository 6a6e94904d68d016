"""Files that are not recordings, are damaged, or do not fit the other side of a comparison."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from obscura_jax.parity import recording_format
from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Verdict
from obscura_jax.parity.fingerprint import Fingerprint, fingerprint
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.recording import read, record
from obscura_jax.parity.torch_trace import trace_torch
from obscura_jax.safetensors_files import read_safetensors, write_safetensors
from tests.support import pairs

fails = pytest.fixture(pairs.fails)
pair = pytest.fixture(pairs.pair)
X = np.linspace(-2, 3, 35, dtype=np.float32).reshape(5, 7)


@pytest.fixture
def file(tmp_path):
    """The recording of a small PyTorch program."""
    record(torch_program(torch.tanh, torch.from_numpy(X)), tmp_path / "one.parity")
    return tmp_path / "one.parity"


def rewritten(change):
    """Return a damage that changes the JSON, and writes the file with the right checksum."""

    def damage(file):
        arrays = read_safetensors(file)
        arrays["content"] = np.frombuffer(change(arrays["content"].tobytes()), np.uint8)
        write_safetensors(file, arrays, {"format": "obscura_jax.parity.recording/1"})

    return damage


def cut(size):
    return lambda file: file.write_bytes(file.read_bytes()[:size])


def swapped(old, new):
    return lambda file: file.write_bytes(file.read_bytes().replace(old, new))


CUT = "one.parity is cut short or damaged; record it again"
OTHER = (
    "one.parity is not a recording of a program; write one with record() or "
    "`obscura parity --record`"
)
DAMAGES = {
    "empty": (cut(0), OTHER),
    "text": (lambda file: file.write_text("hello"), OTHER),
    "weights": (lambda file: write_safetensors(file, {"w": X}), OTHER),
    "header cut": (cut(150), CUT),
    "half": (cut(2000), CUT),
    "last byte": (cut(-1), CUT),
    "one bit": (swapped(b'"side":"PyTorch"', b'"side":"PyTorcH"'), CUT),
    "JSON": (rewritten(lambda text: text[:-1]), CUT),
    "no labels": (rewritten(lambda text: text.replace(b"labels", b"lables")), CUT),
    "a missing operand": (rewritten(lambda text: text.replace(b'"tanh",[0]', b'"tanh",[1]')), CUT),
    "a missing output": (
        rewritten(lambda text: text.replace(b'"outputs":[1]', b'"outputs":[9]')),
        CUT,
    ),
    "a number as text": (rewritten(lambda text: b"7"), CUT),
    "another format": (
        swapped(b"parity.recording/1", b"parity.recording/7"),
        "one.parity is a recording of format 7, and this version of obscura_jax reads format "
        "1; record it again with this version",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recording_is_one_line(file, damage, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert read("one.parity").labels == [""]
    change, line = DAMAGES[damage]
    change(file)
    with pytest.raises(ValueError, match=r"^one\.parity") as error:
        read("one.parity")
    assert str(error.value) == line


def test_the_content_is_what_the_damages_change(file):
    """Negative control: rewriting alone does no damage."""
    rewritten(lambda text: text)(file)
    assert read(file).side == "PyTorch"


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*; write one with record"):
        read(tmp_path / "no.parity")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read(tmp_path)
    program = torch_program(torch.tanh, torch.from_numpy(X))
    with pytest.raises(ValueError, match="cannot be written"):
        record(program, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_recording_of_the_other_side_is_refused(file):
    ours = jax_program(jax.numpy.tanh, X)
    assert compare(read(file), ours).equal
    words = r"one\.parity is a recording of a PyTorch program, but is given as the JAX side"
    with pytest.raises(ValueError, match=words):
        compare(torch_program(torch.tanh, torch.from_numpy(X)), read(file))


@pytest.mark.parametrize(
    ("inputs", "shape"), [(X + 1, "(5, 7)"), (X[:3], "(3, 7)"), (X[:, ::-1] ** 2, "(5, 7)")]
)
def test_a_recording_with_other_inputs_is_not_comparable(file, inputs, shape):
    report = compare(read(file), jax_program(jax.numpy.tanh, inputs))
    assert report.verdict is Verdict.NOT_COMPARABLE
    assert report.reason == (
        f"the recording {file} was made with other inputs: PyTorch's args[0] of shape (5, 7) and "
        f"JAX's args[0] of shape {shape} have different values; record it again with the inputs of "
        "the other side"
    )


def test_inputs_in_another_layout_or_given_as_constants_are_the_same(file):
    """Parameters are inputs of some JAX functions, and constants of others."""
    weights = X.T.copy()
    theirs = read(file)
    for ours in (
        jax_program(lambda x: jax.numpy.tanh(x.T), weights),
        jax_program(lambda: jax.numpy.tanh(X)),
        jax_program(lambda x, more: jax.numpy.tanh(x), X, 2 * X),
    ):
        assert compare(theirs, ours).verdict is Verdict.EQUAL


PAIR = """
import jax.numpy as jnp, torch

def torch_side():
    return torch.tanh, torch.ones(3)

def jax_side():
    return jnp.tanh, jnp.ones(3)
"""


def test_errors_of_recordings_end_the_command(pair, fails):
    pair(PAIR)
    Path("one.parity").write_text("hello")
    assert fails("pair.py", "--against", "one.parity") == OTHER
    pair(PAIR.replace("torch.tanh,", "lambda x: 7,"))
    line = fails("pair.py", "--record", "two.parity", "--side", "torch")
    assert line.startswith("the PyTorch side returns no tensors but int; return a tensor, or pick")
    assert not Path("two.parity").exists()


def test_the_format_has_not_changed():
    """If this fails, raise `FORMAT`: older files have other fingerprints or other fields."""
    trace = trace_torch(torch_program(torch.tanh, torch.from_numpy(X)))
    assert recording_format.FORMAT == "1"
    assert sorted(recording_format.packed(trace, {})) == [
        *("content", "native.0", "print.count", "print.ends", "print.infinite", "print.kind"),
        *("print.moments", "print.nan", "print.ordered", "print.rms", "print.value", "prints"),
    ]
    assert [field.name for field in dataclasses.fields(Fingerprint)] == [
        *("kind", "count", "rms", "moments", "nan", "infinite", "value", "ordered")
    ]
    moments = fingerprint(np.linspace(-2, 3, 35)).moments
    expected = [
        *(0.319055492330, 0.852065844221, 0.892209071365, 2.009569448634, -1.276221969318),
        *(1.914332953977, 0.0917189332713, 0.01360239694789, -0.06396999225173),
    ]
    np.testing.assert_allclose(moments, expected, rtol=0, atol=1e-11)  # measured: 4e-13
