"""`obscura parity pair.py`: each mistake in a pair file is one line, and good ones are compared."""

import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from obscura_jax.cli.main import main
from obscura_jax.parity.findings import Report, Verdict
from obscura_jax.parity.guest import GuestError
from obscura_jax.parity.jax_trace import trace_jax
from obscura_jax.parity.pair_file import load_pair
from obscura_jax.parity.program import JaxProgram, TorchProgram
from obscura_jax.parity.side_errors import failure_of, running
from obscura_jax.parity.torch_trace import trace_torch
from tests.support import processes

GOOD = """
import sys
import jax.numpy as jnp, numpy as np, torch
from obscura_jax.parity.program import jax_program, torch_program
X = np.ones((3, 8), np.float32)

def torch_side():
    return torch.nn.Flatten(), (torch.from_numpy(X),)

def jax_side():
    return jnp.abs, (X,)
"""
TORCH, JAX = "torch.nn.Flatten(), (torch.from_numpy(X),)", "jnp.abs, (X,)"


class Engine:
    """An engine that traces both sides and returns `report`."""

    def __init__(self):
        self.report, self.given, self.options = Report(Verdict.EQUAL), (), {}

    def compare(self, torch_side, jax_side, **options):
        self.given, self.options = (torch_side, jax_side), options
        self.traces = [
            trace_torch(torch_side) if isinstance(torch_side, TorchProgram) else torch_side,
            trace_jax(jax_side) if isinstance(jax_side, JaxProgram) else jax_side,
        ]
        return self.report

    def record(self, program, path):
        self.given = (program, path)

    def read(self, path):
        return SimpleNamespace(side=Path(path).read_text())


@pytest.fixture
def engine(monkeypatch):
    made = Engine()
    prints = {
        name: lambda one, name=name: f"{name}: {one.verdict}" for name in ("as_text", "as_list")
    }
    modules = {
        "compare_programs": SimpleNamespace(compare=made.compare),
        "recording": SimpleNamespace(record=made.record, read=made.read),
        "report": SimpleNamespace(**prints, as_json=lambda one: f"json: {one.verdict}"),
        "programs_page": SimpleNamespace(as_html=lambda one: f"html: {one.verdict}"),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"obscura_jax.parity.{name}", module)
        monkeypatch.setattr(f"obscura_jax.parity.{name}", module, raising=False)
    return made


@pytest.fixture
def fails(capsys):
    """Run the command, which must exit with code 2 after one line; return the line."""

    def run(*words):
        code, out, err = call(capsys, *words)
        assert (code, out) == (2, ""), err
        assert len(err.splitlines()) == 1, err
        return err.removeprefix("obscura parity: ").rstrip("\n")

    return run


def call(capsys, *words):
    """Run `obscura parity` and return its exit code and output."""
    capsys.readouterr()
    try:
        main(["parity", *map(str, words)])
    except SystemExit as end:
        return end.code, *capsys.readouterr()
    return 0, *capsys.readouterr()


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Return a function that writes pair.py in the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text=GOOD):
        (tmp_path / "pair.py").write_text(text)
        return tmp_path / "pair.py"

    return write


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "def torch_side(:\n",
            "pair.py does not run: SyntaxError: invalid syntax (pair.py, line 1)",
        ),
        ("\0", "pair.py does not run: SyntaxError: "),
        (
            "import no_such_package",
            "pair.py does not run: ModuleNotFoundError: No module named 'no_such_package' "
            "(pair.py:1)",
        ),
        ("x = 1\nx / 0", "pair.py does not run: ZeroDivisionError: division by zero (pair.py:2)"),
        (
            "import sys\nsys.exit(0)",
            "pair.py exits on import; put the code that it runs under `if __name__ == "
            "'__main__':`: SystemExit: 0 (pair.py:2)",
        ),
        (
            "",
            "pair.py has no function torch_side(); add it (`obscura parity --new FILE.py` writes "
            "an example)",
        ),
        (
            "def torch_side(): raise SystemExit",
            "pair.py has no function jax_side(); add it (`obscura parity --new FILE.py` writes an "
            "example)",
        ),
        (
            GOOD + "\njax_side = 3",
            "pair.py: jax_side is not a function but int; write `def jax_side():`",
        ),
    ],
)
def test_a_file_that_does_not_load_is_one_line(fails, pair, engine, text, line):
    pair(text)
    assert fails("pair.py").startswith(line)
    assert engine.given == ()


RETURN = "; return a module or a function, and a tuple of its inputs, such as `return module, (x,)`"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            f"return {TORCH}",
            "raise RuntimeError('why\\nnot')",
            "torch_side() fails: RuntimeError: why not (pair.py:8)",
        ),
        (f"return {JAX}", "raise SystemExit", "jax_side() fails: SystemExit (pair.py:11)"),
        (f"return {JAX}", "raise KeyError", "jax_side() fails: KeyError (pair.py:11)"),
        (
            "torch_side()",
            "torch_side(x)",
            "torch_side() fails: TypeError: torch_side() missing 1 required positional "
            "argument: 'x'",
        ),
        (
            f"return {TORCH}",
            "torch.zeros(3, device='cuda')",
            "torch_side() fails: AssertionError: Torch not compiled with CUDA enabled (pair.py:8); "
            "build the module on the CPU",
        ),
        (f"return {TORCH}", "pass", f"torch_side() returns NoneType{RETURN}"),
        (TORCH, "torch.nn.Flatten()", f"torch_side() returns Flatten{RETURN}"),
        (TORCH, "torch.nn.Flatten(), 5", f"torch_side() returns (Flatten, int){RETURN}"),
        (TORCH, "1, (X,)", f"torch_side() returns (int, tuple){RETURN}"),
        (JAX, "jnp.abs, X, X", f"jax_side() returns (PjitFunction, ndarray, ndarray){RETURN}"),
        (JAX, "(jnp.abs,)", f"jax_side() returns (PjitFunction){RETURN}"),
        (JAX, "(i for i in ())", f"jax_side() returns generator{RETURN}"),
        (
            TORCH,
            "torch.nn.Flatten(), {'input': X}",
            "torch_side() returns a callable and dict; return `callable, (), inputs` to give the "
            "inputs by name, or `callable, (inputs,)`",
        ),
        (
            TORCH,
            f"jax_program({JAX.replace('(X,)', 'X')})",
            "torch_side() returns a JAX program; return a torch_program(...)",
        ),
        (
            JAX,
            "torch_program(abs, X)",
            "jax_side() returns a PyTorch program; return a jax_program(...)",
        ),
        (
            JAX,
            "jax_program(X, X)",
            "jax_side() fails: TypeError: jax_program takes a module or a function first, not "
            "ndarray (pair.py:11)",
        ),
        (
            JAX,
            "jnp.abs, ({'x': torch.from_numpy(X)},)",
            "jax_side() returns a PyTorch tensor as an input; convert it with .numpy()",
        ),
    ],
)
def test_a_side_that_gives_no_program_is_one_line(fails, pair, engine, old, new, line):
    assert GOOD.count(old) == 1
    pair(GOOD.replace(old, new))
    assert fails("pair.py").startswith(f"pair.py: {line}")
    assert engine.given == ()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "torch.nn.Flatten(), ",
            "torch.nn.Linear(7, 2), ",
            "the PyTorch side fails: RuntimeError: mat1 and mat2 shapes cannot be multiplied "
            "(3x8 and 7x2)",
        ),
        (
            "torch.nn.Flatten(), ",
            "lambda x: x.reshape(5, 5), ",
            "the PyTorch side fails: RuntimeError: shape '[5, 5]' is invalid for input of size 24 "
            "(pair.py:8)",
        ),
        (
            "torch.nn.Flatten(), ",
            "lambda x: {torch.float32: x}[(x + 1).dtype], ",
            "the PyTorch side fails in float64: KeyError: torch.float64 (pair.py:8)",
        ),
        (
            TORCH,
            "torch_program(torch.abs, torch.from_numpy(X), out=lambda x: x.no)",
            "the PyTorch side fails: AttributeError: 'Tensor' object has no attribute 'no' "
            "(pair.py:8)",
        ),
        (
            "torch.nn.Flatten(), ",
            "lambda x: x.to('cuda'), ",
            "the PyTorch side fails: AssertionError: Torch not compiled with CUDA enabled "
            "(pair.py:8); build the module on the CPU",
        ),
        (
            "jnp.abs, ",
            "lambda x: x @ np.ones((7, 2)), ",
            "the JAX side fails: TypeError: dot_general requires contracting dimensions to have "
            "the same shape, got (8,) and (7,). (pair.py:11)",
        ),
        ("jnp.abs, ", "lambda x: sys.exit(3), ", "the JAX side fails: SystemExit: 3 (pair.py:11)"),
    ],
)
def test_a_program_that_fails_is_one_line(fails, pair, engine, old, new, line):
    pair(GOOD.replace(old, new))
    assert fails("pair.py").startswith(f"pair.py: {line}")


def test_the_line_is_the_innermost_one_of_the_users_files(fails, pair, engine, monkeypatch):
    file = pair(GOOD.replace("torch.nn.Flatten()", "neighbor_of_pair.Net()") + "\nimport os\n")
    file.write_text("import neighbor_of_pair\n" + file.read_text())
    (file.parent / "neighbor_of_pair.py").write_text(
        "import torch\nclass Net(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(2, 2)\n"
        "    def forward(self, x):\n\n        return super().forward(x)\n"
    )
    line = fails("pair.py")
    assert line.startswith("pair.py: the PyTorch side fails: RuntimeError: mat1 and mat2")
    assert line.endswith(" (neighbor_of_pair.py:7)")
    monkeypatch.delitem(sys.modules, "neighbor_of_pair")
    (file.parent / "neighbor_of_pair.py").write_text("\n\nclass Net(:\n")
    line = "pair.py does not run: SyntaxError: invalid syntax (neighbor_of_pair.py, line 3)"
    assert fails("pair.py") == line


def test_a_fault_of_the_engine_is_not_blamed_on_the_program(pair, engine, capsys, monkeypatch):
    def compare(*_, **__):
        raise KeyError(3)

    monkeypatch.setattr(sys.modules["obscura_jax.parity.compare_programs"], "compare", compare)
    pair()
    with pytest.raises(KeyError):
        call(capsys, "pair.py")


@pytest.mark.parametrize("where", ["torch_side", "forward"])
def test_ctrl_c_ends_the_command_quietly(pair, where):
    """The command runs in its own process, because it handles signals differently from Python."""
    wait = "print('ready', flush=True); threading.Event().wait()"
    text = GOOD.replace("X = ", f"import threading\ndef wait(x=None): {wait}\nX = ")
    old, new = (TORCH, "wait()") if where == "torch_side" else ("torch.nn.Flatten()", "wait")
    pair(text.replace(old, new))
    process = processes.start(*processes.OBSCURA, "parity", "pair.py", stderr=processes.PIPE)
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


def test_a_pair_can_be_loaded_in_python(pair):
    loaded = load_pair(pair())
    assert isinstance(loaded.torch().call, torch.nn.Flatten)
    assert loaded.jax().args[0].shape == (3, 8)
    with pytest.raises(
        GuestError, match=r"pair.py: jax_side\(\) fails: ValueError: no \(pair.py:11"
    ):
        load_pair(pair(GOOD.replace(f"return {JAX}", "raise ValueError('no')"))).jax()


def test_a_note_names_the_side_once_and_keeps_the_exception():
    error = ValueError("why")
    error.add_note("the JAX side fails")  # a user's note
    assert failure_of(error) is None
    inner = running("PyTorch", "in float64")
    with pytest.raises(ValueError, match="why") as caught, running("JAX"), inner:
        raise error
    assert caught.value is error
    assert failure_of(error) == "the PyTorch side fails in float64"
    assert len(error.__notes__) == 2
