"""`obscura parity pair.py`: its options, output and exit codes, recordings and the example."""

import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from obscura_jax.parity.findings import Report, Verdict
from obscura_jax.parity.program import JaxProgram, TorchProgram
from tests.support import pairs, processes
from tests.support.pairs import GOOD, JAX, TORCH, call

engine = pytest.fixture(pairs.engine)
fails = pytest.fixture(pairs.fails)
pair = pytest.fixture(pairs.pair)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["torch_side", "forward"])
def test_ctrl_c_ends_the_command_quietly(pair, where, monkeypatch):
    """The command runs in its own process, because it handles signals differently from Python."""
    stubs = "import sys, types\nfor name in ('report', 'programs_page'):\n"
    stubs += "    sys.modules[f'obscura_jax.parity.{name}'] = types.SimpleNamespace(\n"
    stubs += "        as_json=None, as_html=None)\n"
    command = f"{stubs}from obscura_jax.__main__ import run; run()"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    wait = "print('ready', flush=True); threading.Event().wait()"
    text = GOOD.replace("X = ", f"import threading\ndef wait(x=None): {wait}\nX = ")
    old, new = (TORCH, "wait()") if where == "torch_side" else ("torch.nn.Flatten()", "wait")
    pair(text.replace(old, new))
    process = processes.start(
        sys.executable, "-c", command, "parity", "pair.py", stderr=processes.PIPE
    )
    assert process.stderr.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("", "")
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("torch_side", "jax_side"),
    [
        ("torch.abs, torch.from_numpy(X)", "jnp.abs, X"),
        ("torch.abs, [torch.from_numpy(X)]", "jnp.abs, [X]"),
        ("torch.abs, (), {'input': torch.from_numpy(X)}", "lambda x: jnp.abs(x), (), {'x': X}"),
        ("torch.abs, torch.from_numpy(X), {}", "jnp.abs, jnp.asarray(X), {}"),
        ("torch_program(torch.abs, torch.from_numpy(X))", "jax_program(jnp.abs, X)"),
        (
            "torch_program(lambda x: {'a': x, 'b': abs(x)}, torch.from_numpy(X), out='b')",
            "jax_program(lambda x: (x, abs(x)), X, out=1)",
        ),
    ],
)
def test_every_form_of_a_program_is_run(pair, engine, capsys, torch_side, jax_side):
    text = GOOD.replace(TORCH, torch_side).replace(JAX, jax_side)
    pair(text.replace("np.ones((3, 8), np.float32)", "np.arange(-3, 4, dtype=np.float32)"))
    assert call(capsys, "pair.py") == (0, "as_text: equal\n", "")
    assert engine.options == {"gradients": True, "operations": False}
    for trace in engine.traces:
        np.testing.assert_array_equal(trace.native, [[3, 2, 1, 0, 1, 2, 3]])


def test_the_report_alone_is_on_standard_output(pair, engine, capsys):
    """The file prints in each of its parts, and changes global settings."""
    text = GOOD.replace(TORCH, f"print('side') or ({TORCH})").replace("jnp.abs,", "noisy,")
    change = "torch.set_default_dtype(torch.float64)\nos.chdir('/')\nsys.path.append('/theirs')"
    noisy = "def noisy(x): print('forward'); return abs(x)"
    pair(f"{text}\n{noisy}\nimport os, sys\nprint('import')\n{change}")
    code, out, err = call(capsys, "pair.py", "--json", "r.json")
    assert (code, out) == (0, "as_text: equal\n")
    assert err.split()[:3] == ["import", "side", "forward"]
    assert torch.get_default_dtype() == torch.float32
    assert "/theirs" not in sys.path
    assert Path("r.json").read_text() == "json: equal"


@pytest.mark.parametrize("verdict", Verdict)
def test_exit_codes_and_files(pair, engine, capsys, verdict):
    engine.report = Report(verdict, "some reason")
    pair()
    code, out, err = call(capsys, "pair.py", "--json", "r.json", "--html", "r.html", "--list")
    assert code == engine.report.exit_code
    assert Path("r.json").read_text() == f"json: {verdict}"
    assert Path("r.html").read_text() == f"html: {verdict}"
    if verdict is Verdict.NOT_COMPARABLE:
        line = "obscura parity: pair.py cannot be compared: some reason\n"
        assert (code, out, err) == (2, "", line)
    else:
        assert (out, err) == (f"as_list: {verdict}\n\nas_text: {verdict}\n", "")
    assert engine.options == {"gradients": True, "operations": True}
    call(capsys, "pair.py", "--no-gradients")
    assert engine.options == {"gradients": False, "operations": False}


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["no.py"], "there is no file no.py; `obscura parity --new FILE.py` writes an example"),
        ([], "name a pair of programs, such as pair.py, or a model; `obscura parity --new pair."),
        (
            ["pair.py", "--steps", 2],
            "pair.py is a pair of programs, not a model; leave out --steps",
        ),
        (["pair.py", "--seed", 0], "pair.py is a pair of programs, not a model; leave out --seed"),
        (["pair.py", "--tokens", 1], "pair.py is a pair of programs, not a model; leave out --new"),
        (["pair"], "there is no model pair; name the file pair.py"),
        (["pair2"], "no model at 'pair2'; give a folder, "),
        (["tiny", "--list"], "tiny is a model, not a pair of programs; leave out --list"),
        (["tiny", "--no-gradients"], "tiny is a model, not a pair of programs; leave out --no-gra"),
        (["tiny", "--record", "x"], "tiny is a model, not a pair of programs; leave out --record"),
        (["pair.py", "--record", "x"], "--record writes one side; add --side torch or --side jax"),
        (["pair.py", "--side", "jax"], "--side names the side for --record; add --record FILE, or"),
        (
            ["pair.py", "--record", "x", "--side", "jax", "--json", "y"],
            "--record compares nothing; leave out --json",
        ),
        (["pair.py", "--record", "no/x", "--side", "jax"], "no/x cannot be written: there is no"),
        (
            ["pair.py", "--against", "hf"],
            "--against takes a recording of one side if the source is a pair of programs, but "
            "there is no file hf; write one with --record",
        ),
        (["--new", "pair.py"], "pair.py exists already; name a new file"),
        (["--new", "pair"], "'pair' is not the name of a Python file; end it in .py"),
        (["--new", "no/pair.py"], "no/pair.py cannot be written: there is no folder no; create it"),
        (["--new", "x.py", "--list"], "--new only writes an example; leave out --list"),
        (["pair.py", "--new", "x.py"], "--new only writes an example; leave out pair.py"),
    ],
)
def test_options_that_do_not_fit_are_one_line(fails, pair, engine, words, line):
    file = pair()
    assert fails(*words).startswith(line)
    assert engine.given == ()
    assert [path.name for path in file.parent.iterdir() if path.is_file()] == ["pair.py"]
    assert file.read_text() == GOOD


@pytest.mark.parametrize(("side", "name"), [("torch", "PyTorch"), ("jax", "JAX")])
def test_a_recording_replaces_its_side(pair, engine, capsys, side, name):
    """Each of the two files defines only the side that it needs."""
    start, torch_side, jax_side = GOOD.split("def ")
    kept, other = (torch_side, jax_side) if side == "torch" else (jax_side, torch_side)
    folder = pair(f"{start}def {kept}").parent
    code, out, err = call(capsys, "pair.py", "--record", "one.parity", "--side", side)
    assert (code, out, err) == (0, "obscura parity pair.py --against one.parity\n", "")
    program, path = engine.given
    assert isinstance(program, TorchProgram if side == "torch" else JaxProgram)
    assert path == str(folder / "one.parity")

    (folder / "one.parity").write_text(name)
    pair(f"{start}def {other}")
    assert call(capsys, "pair.py", "--against", "one.parity") == (0, "as_text: equal\n", "")
    kinds = [type(given) for given in engine.given]
    programs = [TorchProgram, JaxProgram]
    programs[side == "jax"] = SimpleNamespace
    assert kinds == programs


@jax.numpy_rank_promotion("allow")  # as by default, outside of the tests
def test_the_example_runs(tmp_path, engine, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "--new", "my pair.py") == (0, "obscura parity 'my pair.py'\n", "")
    assert "obscura parity my pair.py" in (tmp_path / "my pair.py").read_text().splitlines()[0]
    assert call(capsys, "my pair.py") == (0, "as_text: equal\n", "")
    (theirs,), (ours,) = (trace.native for trace in engine.traces)
    assert theirs.shape == (3, 5)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)  # measured: 1.2e-7
    text = (tmp_path / "my pair.py").read_text()
    (tmp_path / "my pair.py").write_text(
        text.replace("approximate=False)\n", "approximate=True)\n")
    )
    assert call(capsys, "my pair.py")[0] == 0
    assert np.abs(engine.traces[1].native[0] - theirs).max() > 1e-5
