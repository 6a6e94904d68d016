"""`obscura parity` on a user's file: exits are errors, random numbers and logits are found."""

import signal
import sys

import pytest

from obscura_jax.interop.checkpoint import save_model
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.parity.gpt.lab import compare_implementations
from obscura_jax.parity.gpt.outputs import OutputError, logits_in
from obscura_jax.parity.gpt.references import reference
from obscura_jax.parity.gpt.report import verdict
from obscura_jax.parity.guest import Guest, GuestError
from tests.support import guests, processes
from tests.support.models import BIASED, model_of
from tests.test_parity import call

GUESTS = guests.__file__
IMPORT = "from obscura_jax.parity.gpt.torch_reference import GPTModel\n"


@pytest.fixture
def native(tmp_path):
    save_model(tmp_path / "native", BIASED, model_of(BIASED))
    return str(tmp_path / "native")


def compare_guest(name, **options):
    """Return the report on a module of guests.py."""
    params = model_of(BIASED)
    theirs = reference(f"{GUESTS}:{name}", BIASED, named_tensors(BIASED, params))
    return compare_implementations("x", BIASED, params, theirs, steps=0, new_tokens=0, **options)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ExitsWhenBuilt", "guests.py:ExitsWhenBuilt does not build: SystemExit: 0"),
        ("ExitsWhenRun", "guests.py:ExitsWhenRun fails on a prompt: SystemExit: 0"),
        ("ExitsInBackward", "guests.py:ExitsInBackward fails on a prompt: SystemExit: 0"),
        ("ExitsWhenListed", "guests.py:ExitsWhenListed does not list its parameters: SystemExit"),
        ("Bare", "guests.py:Bare fails on a prompt: BaseException"),
        ("Hidden", "it returned a float64 tensor of shape (1, 11, 12); return logits (1, 11, 17)"),
        ("LastOnly", "it returned a float64 tensor of shape (1, 1, 17); return logits (1, 11, 17)"),
        ("LossFirst", "it returned a tuple of a float64 tensor of shape (), a float64 tensor of"),
        ("Silent", "it returned None; return logits (1, 11, 17), or a tuple"),
        ("Noise", "in two runs on the same input: it draws random numbers"),
        ("AlwaysDrops", "in two runs on the same input: it draws random numbers"),
        ("NoisyGradient", "in its backward pass: two runs on the same input give different"),
        ("Drifts", "in two runs on the same input: it keeps state from one call to the next"),
    ],
)
def test_a_module_that_cannot_be_compared_is_one_line_and_exit_code_2(native, capsys, name, words):
    code = call("parity", native, "--against", f"{GUESTS}:{name}")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def file_that_ends_with(statement, folder):
    (folder / "mine.py").write_text(f"import sys\nprint('hello')\n{statement}\n")
    return folder / "mine.py"


@pytest.mark.parametrize("statement", ["sys.exit(0)", "raise SystemExit"])
def test_a_file_that_exits_on_import_is_an_error(native, tmp_path, capsys, statement):
    file = file_that_ends_with(statement, tmp_path)
    code = call("parity", native, "--against", f"{file}:GPTModel")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    hello, line = err.splitlines()
    assert hello == "hello"
    assert f"{file} exits on import; put the code that it runs under `if __name__ == " in line


@pytest.mark.slow
def test_a_file_that_interrupts_on_import_is_an_error(native, tmp_path):
    """The command runs in its own process, because it handles signals differently from Python."""
    file = file_that_ends_with("raise KeyboardInterrupt", tmp_path)
    ran = processes.run(*processes.OBSCURA, "parity", native, "--against", f"{file}:GPTModel")
    assert (ran.returncode, ran.stdout) == (2, "")
    hello, line = ran.stderr.splitlines()
    assert hello == "hello"
    assert line.endswith(f"{file} does not run: KeyboardInterrupt")


def test_ctrl_c_is_not_an_error_of_the_file():
    """Python raises KeyboardInterrupt on Ctrl-C; the command ends at once instead."""
    with pytest.raises(KeyboardInterrupt), Guest("x")("fails"):
        raise KeyboardInterrupt
    usual = signal.signal(signal.SIGINT, lambda *_: None)  # like `interrupts.install`
    try:
        with pytest.raises(GuestError, match="x fails: KeyboardInterrupt"), Guest("x")("fails"):
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, usual)


def test_settings_of_a_file_do_not_leak(tmp_path, native, capsys, monkeypatch):
    """The file prints, changes global settings and the folder, and imports a file next to it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "neighbor.py").write_text(IMPORT)
    (folder / "mine.py").write_text(
        "import os, sys, torch\n"
        "print('hello')\n"
        "torch.set_default_dtype(torch.float64)\n"
        "torch.set_grad_enabled(False)\n"
        "os.chdir('/')\n"
        "sys.path.append('/theirs')\n"
        "from neighbor import GPTModel\n"
    )
    import torch

    words = ("--against", "theirs/mine.py:GPTModel", "--steps", 1, "--new-tokens", 1)
    try:
        assert call("parity", native, *words, "--json", "r.json") == 0
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(True)
    out, err = capsys.readouterr()
    assert err == "hello\n"
    assert out.endswith("verdict: equal up to rounding\n")
    assert (tmp_path / "r.json").is_file()
    assert "/theirs" not in sys.path


def test_a_nested_error_is_reported_once():
    guest = Guest("mine.py")
    with pytest.raises(GuestError) as caught, guest("outside"), guest("inside"):
        raise RuntimeError("why")
    assert str(caught.value) == "mine.py inside: RuntimeError: why"


def test_a_file_in_a_package_can_import_its_neighbors(tmp_path, native, capsys):
    package = tmp_path / "books" / "gpt"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text(IMPORT)
    (package / "model.py").write_text("from .parts import GPTModel\n")
    words = ("--against", f"{package / 'model.py'}:GPTModel", "--steps", 1, "--new-tokens", 1)
    assert call("parity", native, *words) == 0
    assert capsys.readouterr().out.endswith("verdict: equal up to rounding\n")
    assert str(tmp_path / "books") not in sys.path


@pytest.mark.parametrize("name", ["WithLoss", "AsDictionary", "AsObject"])
def test_logits_are_found_in_the_returned_value(name):
    assert verdict(compare_guest(name)) == "equal up to rounding"


def test_draws_without_effect_are_equal():
    assert verdict(compare_guest("DrawsInVain")) == "equal up to rounding"


def test_scaling_queries_instead_of_scores_is_equal():
    assert verdict(compare_guest("QueriesScaled")) == "equal up to rounding"
    sentence = verdict(compare_guest("WholeWidth"))
    assert "first at trf_blocks.0.att.context" in sentence
    assert "PyTorch's div at guests.py:" in sentence
    assert "3.464101615 instead of 2" in sentence


@pytest.mark.parametrize("name", ["PerLayer", "PerLayerRoot"])
def test_a_scale_that_differs_by_layer_is_found_in_the_second(name):
    sentence = verdict(compare_guest(name))
    assert "first at trf_blocks.1.att.context" in sentence
    assert "PyTorch's div at guests.py:" in sentence


def test_nan_in_float32_alone_is_different():
    report = compare_guest("NotANumber")
    assert "first at logits, NaN or infinite in theirs, in float32" in verdict(report)
    assert "with every operation in float64, both are equal" in verdict(report)


def test_logits_must_have_the_shape_of_the_ids():
    import torch

    logits = torch.zeros(2, 3, 5)
    for output in (logits, (logits, None), [logits], {"logits": logits}):
        assert logits_in(output, (2, 3), 5) is logits
    assert logits_in(logits, (2, 3)) is logits
    for output in (None, (), {}, logits[0], logits.long(), (None, logits), {"out": logits}):
        with pytest.raises(OutputError, match=r"return logits \(2, 3, 5\)"):
            logits_in(output, (2, 3), 5)
    with pytest.raises(OutputError, match=r"\(2, 3, 5\); return logits \(2, 3, 6\)"):
        logits_in(logits, (2, 3), 6)
