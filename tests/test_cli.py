"""The command line: its output, and one line with exit code 2 for each mistake of a user."""

import argparse
import hashlib
import io
import json
import os
import pickle
import pty
import re
import signal
import sys
import tty
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from obscura_jax import GPTConfig, compile_cache, generate, save_model
from obscura_jax.cli import bench, compile, convert, export, info, parity, train
from obscura_jax.cli import generate as generate_command
from obscura_jax.cli.main import command_parser, main
from obscura_jax.interop.checkpoint import load_model
from obscura_jax.parity.gpt import torch_reference
from obscura_jax.rng.torch_generator import torch_seed_init
from obscura_jax.text.prompts import read_prompts
from obscura_jax.text.tokenizers import gpt2_tokenizer
from tests.support import processes

TINY = {
    "vocab_size": 17,
    "context_length": 11,
    "emb_dim": 12,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.1,
    "qkv_bias": False,
}
SPEAKING = {**TINY, "vocab_size": 50257}  # for GPT-2's tokenizer
ROOT = Path(__file__).parents[1]
MODULE = [sys.executable, "-m", "obscura_jax"]


@pytest.fixture
def course(tmp_path):
    """Return the path of a course checkpoint."""
    torch.manual_seed(0)
    torch.save(torch_reference.GPTModel(TINY).state_dict(), tmp_path / "course.pth")
    return str(tmp_path / "course.pth")


@pytest.fixture
def native(tmp_path, course):
    """Return a native folder that the command has converted."""
    call("convert", course, tmp_path / "native", "--n-heads", 3)
    return str(tmp_path / "native")


@pytest.fixture(scope="session")
def speaking(tmp_path_factory):
    """A model of all of GPT-2's tokens, in torch and on disk with its config."""
    torch.manual_seed(1)
    model = torch_reference.GPTModel(SPEAKING).eval()
    path = tmp_path_factory.mktemp("speaking") / "speaking.pth"
    torch.save({"model_state_dict": model.state_dict(), "config": SPEAKING}, path)
    return model, str(path)


def call(*words):
    """Run the command and return its exit code, 0 if it returned."""
    try:
        main([str(word) for word in words])
    except SystemExit as end:
        return end.code
    return 0


@pytest.fixture
def fails(capsys):
    """Run the command, which must exit with code 2 after one line; return the line."""

    def run(*words):
        capsys.readouterr()
        code = call(*words)
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert err.endswith("\n")
        assert len(err.splitlines()) == 1, err
        assert err.startswith("obscura")
        return err.rstrip("\n")

    return run


# What the commands print.


def test_convert_prints_the_source_and_target_of_each_tensor(course, tmp_path, capsys):
    assert call("convert", course, tmp_path / "native", "--n-heads", "3") == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    names = list(torch.load(course, weights_only=True))
    assert [line.split(" -> ")[0] for line in lines[: len(names)]] == names
    bits = torch.load(course, weights_only=True)["tok_emb.weight"].numpy().tobytes()
    sum_ = hashlib.sha256(bits).hexdigest()[:16]
    assert f"tok_emb.weight -> tok_emb.weight  17x12 float32  {sum_}  as it is" in lines
    mask = (
        r"trf_blocks\.1\.att\.mask -> -  11x11 float32  [0-9a-f]{16}  causal mask: checked, dropped"
    )
    assert any(re.fullmatch(mask, line) for line in lines)
    assert lines[-2] == f"{course} (course) -> {tmp_path / 'native'} (native)"
    assert "n_heads=3" in lines[-1]
    config = json.loads((tmp_path / "native" / "config.json").read_text())
    assert config == {"format": "obscura_jax", **TINY, "tie_weights": False, "ln_eps": 1e-5}


def test_convert_there_and_back_keeps_every_bit(course, native, tmp_path):
    assert call("convert", native, tmp_path / "back.pth", "--to", "course") == 0
    state = torch.load(course, weights_only=True)
    back = torch.load(tmp_path / "back.pth", weights_only=True)
    assert back.keys() == state.keys()
    for name in state:
        assert back[name].numpy().tobytes() == state[name].numpy().tobytes()
    torch_reference.GPTModel(TINY).load_state_dict(back, strict=True)


def test_info_prints_parameter_counts_and_memory(native, course, capsys):
    state = torch.load(course, weights_only=True)
    count = sum(x.numel() for name, x in state.items() if "mask" not in name)
    for source, dialect in ((native, "native"), (course, "course")):
        assert call("info", source, "--n-heads", 3) == 0
        out, err = capsys.readouterr()
        lines = [line.split(maxsplit=1) for line in out.splitlines()]
        assert ["dialect", dialect] in lines
        assert ["parameters", f"{count:,}"] in lines
        assert ["with", f"weight tying  {count - 17 * 12:,}"] in lines
        assert ["memory", f"{count * 4 / 2**20:.2f} MiB"] in lines
        assert ["n_heads", "3"] in lines
        assert err == ""


def continued(model, prompt, count):
    """Return the continuation of a prompt by the course's own loop in torch."""
    ids = torch.tensor([gpt2_tokenizer().encode(prompt, allowed_special="all")])
    out = torch_reference.generate_text_simple(model, ids, count, SPEAKING["context_length"])
    return out[0, ids.shape[1] :].tolist()


PROMPTS = ("Hello, I am", "a", "<|endoftext|>", "Every effort moves you " * 5, " ", "naïve → 世界")


@pytest.mark.slow
def test_generate_prints_the_text_of_torch(speaking, capsys):
    model, path = speaking
    assert call("generate", *PROMPTS, "--model", path, "--max-new-tokens", 4, "--sliding") == 0
    out, err = capsys.readouterr()
    new = [continued(model, prompt, 4) for prompt in PROMPTS]
    text = gpt2_tokenizer().decode
    assert out == "".join(f"{p}{text(ids)}\n" for p, ids in zip(PROMPTS, new, strict=True))
    assert err == ""
    assert call("generate", PROMPTS[0], "--model", path, "--max-new-tokens", 4, "--json") == 0
    expected = {"prompt": PROMPTS[0], "text": text(new[0]), "tokens": new[0]}
    made = json.loads(capsys.readouterr().out)
    assert {name: made[name] for name in expected} == expected
    with torch.no_grad():  # the comparison sees a change of the model
        model.trf_blocks[1].att.out_proj.weight.mul_(-20)
        changed = [continued(model, prompt, 4) for prompt in PROMPTS]
        model.trf_blocks[1].att.out_proj.weight.div_(-20)
    assert changed != new


@pytest.mark.slow
def test_generate_needs_the_number_of_heads_of_a_bare_checkpoint(fails, tmp_path, capsys):
    """A model with 4 heads of width 3 is not the model with 3 heads of width 4."""
    torch.manual_seed(1)
    model = torch_reference.GPTModel(SPEAKING).eval()
    with torch.no_grad():  # the attention of a fresh model is too weak to change a token
        for name, p in model.named_parameters():
            p.mul_(9 if ".att." in name else 1)
    torch.save(model.state_dict(), tmp_path / "plain.pth")
    words = ("generate", "Hello", "--model", tmp_path / "plain.pth", "--max-new-tokens", 9)
    assert "give n_heads (--n-heads)" in fails(*words)
    assert call(*words, "--n-heads", 3) == 0
    expected = f"Hello{gpt2_tokenizer().decode(continued(model, 'Hello', 9))}\n"
    assert capsys.readouterr().out == expected
    assert call(*words, "--n-heads", 4) == 0
    assert capsys.readouterr().out != expected


@pytest.mark.slow
def test_generate_reads_prompts_line_by_line(speaking, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nto\u2028you\r\nbye"))
    command = ("generate", "--model", speaking[1], "--max-new-tokens", 2, "--json")
    assert call(*command) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prompt"] for row in rows] == ["Hello", "to\u2028you", "bye"]
    assert [row["tokens"] for row in rows] == [
        continued(speaking[0], row["prompt"], 2) for row in rows
    ]


def test_help_and_version(capsys):
    for words in (["--help"], ["--version"], ["generate", "--help"], ["convert", "--help"]):
        assert call(*words) == 0
        out, err = capsys.readouterr()
        assert "obscura" in out
        assert err == ""


def test_every_argument_has_a_help_text():
    """It can be read alone: it does not continue the option's name."""
    commands = argparse.ArgumentParser().add_subparsers()
    for command in (bench, compile, convert, export, generate_command, info, parity, train):
        command.add_parser(commands)
    assert len(commands.choices) == 8
    for name, parser in commands.choices.items():
        for action in parser._actions:
            if action.help == argparse.SUPPRESS:  # an earlier spelling
                continue
            words = (action.help or "").split()
            assert len(words) > 1, (name, action.dest)
            assert words[0] not in ("of", "in", "rather", "which", "it"), (name, action.dest)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["generate", "a", "b"], {"prompt": ["a", "b"]}),
        (["generate", "a", "--top-k", "3", "b"], {"prompt": ["a", "b"], "top_k": 3}),
        (["generate", "--top-k", "3", "a"], {"prompt": ["a"], "top_k": 3}),
        (["generate", "--top-k", "3"], {"prompt": [], "top_k": 3}),
        (["generate", "--top-k", "3", "--", "-a", "--b"], {"prompt": ["-a", "--b"], "top_k": 3}),
        (["look", "m", "--html", "h", "a"], {"model": "m", "html": "h", "text": "a"}),
        (["look", "m", "--serve"], {"model": "m", "serve": True, "text": None}),
        (["convert", "a", "--to", "hf", "b"], {"source": "a", "destination": "b", "to": "hf"}),
    ],
)
def test_options_may_be_anywhere(words, found):
    given = vars(command_parser().parse_args(words))
    assert given == given | found


# What a user may get wrong.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "obscura: the following arguments are required: command (see obscura --help)"),
        (["sing"], "invalid choice: 'sing'"),
        (["info"], "obscura info: the following arguments are required: source"),
        (["info", "x", "--loud"], "unrecognized arguments: --loud (see obscura info --help)"),
        (["info", "--loud", "--", "x"], "unrecognized arguments: --loud (see obscura info --help)"),
        (["--loud", "info", "x"], "unrecognized arguments: --loud (see obscura --help)"),
        (["info", "x", "--lo\nud"], "unrecognized arguments: --lo ud"),
        (["info", "x", "--n-heads", "3", "y"], "unrecognized arguments: y"),
        (["info", "x", "--n-heads", "0"], "argument --n-heads: must be a whole number of at least"),
        (["info", "x", "--n-heads", "3.0"], "argument --n-heads: must be a whole number of at"),
        (["convert", "x"], "obscura convert: the following arguments are required: destination"),
        (["convert", "x", "y", "--to", "z"], "argument --to: invalid choice: 'z'"),
        (
            ["train", "--out", "x", "--preset", "tiny", "--vocab-size", "300"],
            "preset tiny has vocab_size=4096, not 300; leave one of them out",
        ),
        *(
            (["generate", "x", "--model", "y", "--max-new-tokens", n], "argument --max-new-tokens:")
            for n in ("0", "-1", "x", "", "1.5", "1e3", "10000000000", "9" * 5000)
        ),
        (["generate", "", "--model", "y"], "a prompt needs at least one character"),
        (["generate", "x", "", "--model", "y"], "a prompt needs at least one character"),
        (["generate", "\udcff", "--model", "y"], "argument prompt: is not UTF-8 text"),
        (["generate", "x", "--stop", "\udcff"], "argument --stop: is not UTF-8 text"),
        (["generate", "x", "--model", "y"], "no model at 'y'; give a folder"),
        (["generate", "x", "--model", "torch-seed:x"], "'torch-seed:x' is not torch-seed:N"),
        (["info", "torch-seed:1:small"], "PRESET one of 124M, gpt2"),
        (["info", f"torch-seed:{2**64}"], "a torch seed must be a 64-bit integer"),
        (["info", "torch-seed:1", "--n-heads", "7"], "torch-seed:1 has n_heads=12, not 7"),
        (["info", "nothing.pth"], "no model at 'nothing.pth'"),
        (["info", ""], "no model at ''"),
        (["info", "."], ". is not a model: the folder has no model.safetensors"),
        (["convert", "nothing", "x"], "obscura convert: no model at 'nothing'"),
    ],
)
def test_a_mistake_is_one_line(fails, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in fails(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no prompt; give one as an argument, or one per line on standard input"),
        ("\ufeff", "no prompt; give one"),
        ("\n", "line 1 of standard input is blank"),
        ("a\r\n\r\nb\r\n", "line 2 of standard input is blank"),
        (None, "no prompt; give one"),
    ],
)
def test_no_prompt_on_standard_input_is_one_line(fails, monkeypatch, text, message):
    monkeypatch.setattr("sys.stdin", text if text is None else io.StringIO(text))
    assert message in fails("generate", "--model", "torch-seed:1")


def test_bytes_that_are_not_utf8_are_one_line(fails, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(b"fine\n\xff\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    message = "standard input is not UTF-8 text: byte 5 is 0xff"
    assert message in fails("generate", "--model", "torch-seed:1")


@pytest.mark.parametrize("text", ["one\r\ntwo\r\n", "\ufeffone\ntwo", "\ufeffone\r\ntwo\r\n"])
def test_line_ends_and_a_byte_order_mark_do_not_belong_to_a_prompt(monkeypatch, text):
    stdin = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="ascii", newline="")
    monkeypatch.setattr("sys.stdin", stdin)
    assert read_prompts([], sys.stdin) == ["one", "two"]
    monkeypatch.setattr("sys.stdin", io.StringIO("o\rne\ntwo \ufeff", newline=""))
    assert read_prompts([], sys.stdin) == ["o\rne", "two \ufeff"]  # inside a line they are text


@pytest.mark.slow
@pytest.mark.parametrize("platforms", ["cuda", "tpu", "nonsense", "cuda,tpu"])
def test_an_unavailable_platform_is_one_line(tmp_path, platforms):
    (tmp_path / "text").write_text("text " * 1000)
    words = ("train", "--text", tmp_path / "text", "--out", tmp_path / "run")
    done = processes.run(*MODULE, *words, env={"JAX_PLATFORMS": platforms})
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        f"obscura train: JAX finds no device for JAX_PLATFORMS={platforms}"
    )
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", [["--coordinator", "host"], ["--distributed"]])
def test_jax_does_not_start_before_processes_connect(fails, tmp_path, monkeypatch, words):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    join = [*words, "--processes", 2, "--process-id", 0]
    if "--distributed" in words:
        join += ["--coordinator", "host"]
    assert "invalid coordinator" in fails("train", "--out", tmp_path / "run", *join)


LOCALES = [
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.slow
@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_prompts_are_utf8_and_output_is_escaped_in_any_locale(small, locale):
    command = (*MODULE, "generate", *small, "--max-new-tokens", 2, "--json")
    rows = [
        json.loads(processes.run(*command, TWO[1], "--stop", "世", env=locale).stdout),
        json.loads(processes.run(*command, "--stop", "世", input=TWO[1], env=locale).stdout),
        json.loads(processes.run(*command, TWO[1]).stdout),
    ]
    assert [row["prompt"] for row in rows] == [TWO[1]] * 3
    assert [row["tokens"] for row in rows] == [rows[2]["tokens"]] * 3
    plain = processes.run(*MODULE, "generate", *small, "--max-new-tokens", 2, TWO[1], env=locale)
    assert (plain.returncode, plain.stderr) == (0, "")
    assert plain.stdout.startswith(TWO[1].encode("ascii", "backslashreplace").decode())


def test_a_model_without_a_text_tokenizer_is_one_line(fails, native):
    message = f"{native} has 17 tokens and no tokenizer; give token ids (--ids)"
    assert message in fails("generate", "Hello", "--model", native)


@pytest.mark.slow
def test_ids_that_the_tokenizer_lacks_are_shown_as_the_replacement_character(tmp_path, capsys):
    torch.manual_seed(0)
    model = torch_reference.GPTModel({**TINY, "vocab_size": 50300})
    with torch.no_grad():  # prefers a token that the tokenizer lacks, whatever it reads
        model.final_norm.scale.zero_()
        model.final_norm.shift.fill_(1)
        model.out_head.weight.zero_()
        model.out_head.weight[50299] = 1
    torch.save({"model": model.state_dict(), "config": {"n_heads": 3}}, tmp_path / "x.pth")
    words = ("generate", "Hello", "--model", tmp_path / "x.pth", "--max-new-tokens", 2)
    assert call(*words) == 0
    assert capsys.readouterr() == ("Hello\ufffd\ufffd\n", "")
    assert call(*words, "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["text"], made["tokens"]) == ("\ufffd\ufffd", [50299, 50299])


class Code:
    """An object that creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_are_not_models_are_one_line(fails, native, course, tmp_path):
    state = torch.load(course, weights_only=True)
    whole = Path(course).read_bytes()
    weights = (Path(native) / "model.safetensors").read_bytes()
    for name, content, message in (
        ("empty.pth", b"", "is damaged, cut short or not a PyTorch checkpoint"),
        ("half.pth", whole[: len(whole) // 2], "is damaged, cut short or not a PyTorch"),
        ("half.safetensors", weights[: len(weights) // 2], "is damaged, cut short or not a safe"),
        ("text.pth", b"hello world", "is damaged, cut short or not a PyTorch checkpoint"),
        ("picture.png", b"\x89PNG\r\n\x1a\n", "does not end in .safetensors, .pth, .pt"),
        ("code.pth", pickle.dumps(Code(str(tmp_path / "witness"))), "calls posix.mkdir"),
        ("old.pth", pickle.dumps(Code(str(tmp_path / "witness")), 2), "calls posix.mkdir"),
        ("list.pth", [1, 2], "holds an object of type list, not a state dict"),
        (
            "less.pth",
            {"tok_emb.weight": state["tok_emb.weight"]},
            "missing tensors: pos_emb.weight",
        ),
        ("more.pth", {**state, "bia\n\x1b[1ms": state["final_norm.scale"]}, r"bia \x1b[1ms"),
        ("shape.pth", {**state, "final_norm.scale": torch.ones(11)}, "final_norm.scale has shape"),
        ("type.pth", {**state, "final_norm.scale": torch.ones(12).int()}, "has type int32"),
        ("nan.pth", {**state, "final_norm.scale": torch.ones(12) * torch.nan}, "holds NaN"),
        (
            "big.pth",
            {**state, "final_norm.scale": torch.ones(12).double() * 1e300},
            "too large for float32",
        ),
        (
            "mask.pth",
            {**state, "trf_blocks.0.att.mask": torch.ones(11, 11)},
            "trf_blocks.0.att.mask is not the causal mask",
        ),
    ):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        for words in (("info", path), ("convert", path, tmp_path / "out")):
            line = fails(*words, "--n-heads", 3)
            assert message in line
            assert str(path) in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "witness").exists()


def test_a_missing_number_of_heads_is_one_line(fails, course):
    assert "give n_heads (--n-heads), a divisor of emb_dim=12" in fails("info", course)
    assert "not divisible by n_heads=5" in fails("info", course, "--n-heads", 5)


def test_destinations_of_the_wrong_kind_are_one_line(fails, course, native, tmp_path):
    (tmp_path / "file").write_text("mine")
    for words, message in (
        ((course, tmp_path / "file"), "is a file, but this form is a folder"),
        ((course, tmp_path / "file" / "x"), "cannot be written: Not a directory"),
        ((course, course), "is the name of a file, but this form is a folder"),
        ((course, ""), "the destination is empty"),
        ((native, tmp_path, "--to", "course"), "is a folder, but a course checkpoint is a file"),
        ((native, tmp_path / "file", "--to", "course"), "must end in .pth or .pt or .safetensors"),
    ):
        assert message in fails("convert", *words, "--n-heads", 3)
    assert (tmp_path / "file").read_text() == "mine"
    load_model(course, n_heads=3)


def test_without_torch_the_error_names_what_to_install(
    fails, course, native, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "torch", None)
    needed = "needs torch: run pip install -e '.[torch]' in the clone of obscura_jax"
    assert needed in fails("info", course, "--n-heads", 3)
    assert needed in fails("convert", native, tmp_path / "x.pth", "--to", "course")
    assert call("info", native) == 0


def test_too_little_memory_is_one_line(fails, native, monkeypatch):
    def starve(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("obscura_jax.interop.checkpoint.read_checkpoint", starve)
    assert fails("info", native) == "obscura info: not enough memory"


def test_too_little_device_memory_is_one_line(fails, native, monkeypatch):
    def starve(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating 9 bytes.")

    monkeypatch.setattr("obscura_jax.interop.checkpoint.read_checkpoint", starve)
    line = fails("info", native)
    assert line.startswith("obscura info: not enough memory: RESOURCE_EXHAUSTED: Out of memory")

    def fail(*args, **kwargs):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect, not a mistake of the user's")

    monkeypatch.setattr("obscura_jax.interop.checkpoint.read_checkpoint", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
        call("info", native)


# As real processes.

WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
sys.meta_path.insert(0, NoTorch())
from obscura_jax.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_the_module_is_the_command_and_prints_nothing_else(speaking):
    command = (*MODULE, "generate", "--model", speaking[1], "--max-new-tokens", 2)
    done = processes.run(*command, input="Hello\n")
    text = gpt2_tokenizer().decode(continued(speaking[0], "Hello", 2))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Hello{text}\n", "")
    done = processes.run(*command, "", input="")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "obscura generate: a prompt needs at least one character\n"


@pytest.mark.slow
def test_the_script_converts_from_any_folder(course, tmp_path):
    script = ROOT / "tools" / "convert_weights.py"
    done = processes.run(sys.executable, script, course, "made", "--n-heads", 3, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-2] == f"{course} (course) -> made (native)"
    params = load_model(tmp_path / "made")[1]
    weight = torch.load(course, weights_only=True)["tok_emb.weight"].numpy()
    assert np.array_equal(params["tok_emb"]["weight"], weight)
    done = processes.run(sys.executable, script, course, "other", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("obscura convert: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_native_models_are_read_without_torch(course, native):
    done = processes.run(sys.executable, "-c", WITHOUT_TORCH, "info", native)
    assert (done.returncode, done.stderr) == (0, "")
    done = processes.run(sys.executable, "-c", WITHOUT_TORCH, "info", course)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"obscura info: reading {course} needs torch: run pip install -e '.[torch]' in the "
        "clone of obscura_jax\n"
    )


@pytest.mark.parametrize("words", ["--help", "info {native}"])
def test_a_closed_pipe_is_no_error(native, words):
    read, write = os.pipe()
    os.close(read)  # before the command has written anything
    done = processes.run(*MODULE, *words.format(native=native).split(), stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_output_is_one_line(native):
    with open("/dev/full", "w") as full:
        done = processes.run(*MODULE, "info", native, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "obscura info: [Errno 28] No space left on device\n"


def test_closed_streams_give_no_traceback(native):
    command = f"{sys.executable} -m obscura_jax"
    done = processes.run("sh", "-c", f"{command} info {native} >&-")
    assert (done.returncode, done.stderr) == (0, "")
    done = processes.run("sh", "-c", f"{command} generate --model {native} <&-")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


# `obscura generate` in full: settings, streams, the programs it keeps.


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """Processes keep programs in a folder of the tests; this process keeps none."""
    folder = tmp_path_factory.getbasetemp() / "programs"
    monkeypatch.setenv("OBSCURA_CACHE_DIR", str(folder))
    monkeypatch.setattr("obscura_jax.cli.generate.enable_compilation_cache", lambda: None)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The words that name a tiny model with GPT-2's vocabulary and room for 64 tokens."""
    cfg = GPTConfig(50257, 64, 8, 2, 1, 0.1, False)
    folder = tmp_path_factory.mktemp("small") / "model"
    save_model(folder, cfg, torch_seed_init(cfg, 7))
    return "--model", str(folder)


@pytest.fixture
def says(capsys):
    """Run `generate`, which must print nothing on standard error; return its output."""

    def run(*words):
        capsys.readouterr()
        assert call("generate", *words) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return run


class Terminal(io.StringIO):
    """A terminal that records its contents at each flush."""

    def __init__(self):
        super().__init__()
        self.shown = []

    def isatty(self):
        return True

    def flush(self):
        self.shown.append(self.getvalue())


TWO = ("Hello, I am", "naïve → 世界")


@pytest.mark.slow
def test_generate_json_is_the_output_of_generate(says, small):
    rows = [
        json.loads(line)
        for line in says(*TWO, *small, "--max-new-tokens", 9, "--json").split("\n")[:-1]
    ]
    model, params = load_model(small[1])
    tokenizer = gpt2_tokenizer()
    out = generate(model, params, [tokenizer.encode(prompt) for prompt in TWO], 9)
    for n, row in enumerate(rows):
        assert row.pop("seconds") > 0
        assert row.pop("compiled") >= 0
        assert row == {
            "prompt": TWO[n],
            "text": tokenizer.decode(out.tokens[n]),
            "tokens": out.tokens[n],
            "logprobs": out.logprobs[n],
            "finish": "length",
        }
    assert len(rows) == 2


@pytest.mark.slow
def test_generate_fits_in_the_context_by_default(says, small, fails):
    """The longest of several prompts decides for all."""

    def count(*words):
        return [
            len(json.loads(row)["tokens"])
            for row in says(*words, *small, "--json").split("\n")[:-1]
        ]

    assert count("Hello") == [63]
    assert count("Hello", "a" + " a" * 39) == [24, 24]
    assert count("Hello", "--max-new-tokens", 5) == [5]
    assert count("Hello", "--sliding") == [64]
    full = "a" + " a" * 63
    assert count("a" + " a" * 62) == [1]
    line = "obscura generate: a prompt of 64 tokens fills the context of 64 tokens; shorten it, or "
    assert fails("generate", full, *small) == line + "pass sliding_window=True (--sliding)"
    assert count(full, "--sliding") == [64]


@pytest.mark.slow
def test_generate_samples_with_its_seed(says, small):
    words = (*TWO, *small, "--max-new-tokens", 9)
    greedy = says(*words)
    drawn = says(*words, "--temperature", 0.9)
    assert drawn == says(*words, "--temperature", 0.9, "--seed", 0) != greedy
    assert drawn != says(*words, "--temperature", 0.9, "--seed", 1)
    for setting in (("--top-k", 1), ("--top-p", 1e-9), ("--min-p", 0.999999)):
        assert says(*words, "--temperature", 0.9, *setting) == greedy
    assert says(*words, "--seed", 5) == greedy
    assert says(*words, "--dtype", "bfloat16") != ""


@pytest.mark.slow
def test_jax_promotion_settings_do_not_change_the_text(small):
    command = (*MODULE, "generate", *small, *TWO, "--max-new-tokens", 99, "--sliding")
    command += ("--top-k", 9, "--top-p", 0.9)
    variables = {"JAX_ENABLE_X64": "1", "JAX_NUMPY_DTYPE_PROMOTION": "strict"}
    plain = processes.run(*command, "--temperature", 1)
    done = processes.run(*command, "--temperature", 1, env=variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, plain.stdout, "")
    assert processes.run(*command, "--temperature", 2).stdout != plain.stdout


def test_generate_ends_before_a_stop_string(says, small):
    words = (TWO[0], *small, "--max-new-tokens", 12, "--json")
    free = json.loads(says(*words))
    stop = free["text"][4:20]
    made = json.loads(says(*words, "--stop", "\x00", "--stop", stop))
    assert (made["text"], made["finish"]) == (free["text"][: free["text"].index(stop)], "stop")
    count = len(made["tokens"])
    assert count < 12
    assert made["tokens"] == free["tokens"][:count]
    assert made["logprobs"] == free["logprobs"][:count]
    assert stop in gpt2_tokenizer().decode(made["tokens"])
    assert stop not in gpt2_tokenizer().decode(made["tokens"][:-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--temperature", "-1"], "temperature must be from 0 to 3.403e+38, got -1.0"),
        (["--temperature", "nan"], "temperature must be from 0 to 3.403e+38"),
        (["--temperature", "hot"], "argument --temperature: invalid float value: 'hot'"),
        (["--top-k", "0"], "argument --top-k: must be a whole number of at least 1"),
        (["--top-k", "50258"], "top_k must be a whole number from 1 to 50257"),
        (["--top-p", "0"], "top_p must be a number in (0, 1]"),
        (["--min-p", "1"], "min_p must be a number in [0, 1)"),
        (["--seed", "-1"], "argument --seed: must be a whole number from 0 to 2147483647"),
        (["--seed", "1.5"], "argument --seed: must be a whole number from 0"),
        (["--seed", str(2**64)], "argument --seed: must be a whole number from 0"),
        (["--stop", ""], "stop must be a list of strings that are not empty"),
        (["--dtype", "int8"], "argument --dtype: invalid choice: 'int8'"),
        (["--max-new-tokens", "64"], "1 prompt tokens + 64 new tokens exceed the context of 64"),
    ],
)
def test_a_setting_out_of_range_is_one_line(fails, small, monkeypatch, words, message):
    words = ("generate", "Hello", *small, "--max-new-tokens", 63, *words)
    assert message in fails(*words)
    if "argument" not in message:  # a terminal shows nothing either
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        assert call(*words) == 2
        assert terminal.getvalue() == ""


@pytest.mark.slow
def test_a_terminal_shows_text_while_it_is_generated(says, small, monkeypatch):
    words = (*TWO, *small, "--max-new-tokens", 40, "--temperature", 0.9, "--stop", "\x00")
    expected, objects = says(*words), says(*words, "--json")
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert call("generate", *words) == 0
    assert terminal.getvalue() == expected
    assert terminal.shown[0] == TWO[0]
    assert len(set(terminal.shown)) > 10
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    assert call("generate", *words, "--json") == 0
    assert len(terminal.getvalue().splitlines()) == len(objects.splitlines()) == 2


def on_a_terminal(*words, until=None):
    """Run the module on a pseudo-terminal; return the pieces read, exit code and standard error.

    If `until` is given, send Ctrl-C once more than that text was read.
    """
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    command = [*MODULE, "generate", *map(str, words)]
    pieces = []
    pipes = {"stdout": theirs, "stderr": processes.PIPE, "encoding": None}
    process = processes.start(*command, **pipes)
    os.close(theirs)
    try:
        while piece := os.read(ours, 10**6):
            pieces.append(piece)
            if until is not None and len(b"".join(pieces)) > len(until):
                process.send_signal(signal.SIGINT)
                until = None
    except OSError:  # how Linux says that the other side is closed
        pass
    err = process.communicate()[1]
    os.close(ours)
    return pieces, process.returncode, err


@pytest.mark.slow
def test_text_arrives_in_pieces(says, small):
    words = (TWO[1], *small, "--max-new-tokens", 30)
    pieces, code, err = on_a_terminal(*words)
    assert (code, err) == (0, b"")
    assert b"".join(pieces).decode() == says(*words)
    assert len(pieces) > 1


@pytest.mark.slow
def test_ctrl_c_leaves_the_text_so_far(small):
    words = ("Hello", *small, "--max-new-tokens", 10**6, "--sliding")
    pieces, code, err = on_a_terminal(*words, until="Hello")
    assert (code, err) == (130, b"")
    text = b"".join(pieces).decode()
    assert text.startswith("Hello")
    assert len(text) > len("Hello\n")
    assert text.endswith("\n")


@pytest.mark.slow
def test_compiled_programs_are_stored_unless_declined(small, tmp_path):
    command = [*MODULE, "generate", "Hello", *small, "--max-new-tokens", 3]

    def run(folder, *words):
        return processes.run(*command, *words, env={"OBSCURA_CACHE_DIR": str(folder)})

    none = run(tmp_path / "none", "--no-compile-cache")
    assert not (tmp_path / "none").exists()
    first = run(tmp_path / "kept" / "deep")
    kept = sorted(path.name for path in (tmp_path / "kept" / "deep").iterdir())
    assert any("prefill" in name for name in kept)
    assert any("decode" in name for name in kept)
    again = run(tmp_path / "kept" / "deep")
    programs = {path.name for path in (tmp_path / "kept" / "deep").iterdir()}
    assert {name for name in programs if name.endswith("-cache")} <= set(kept)  # none is new
    for done in (none, first, again):
        assert (done.returncode, done.stdout, done.stderr) == (0, none.stdout, "")


@pytest.mark.slow
def test_damaged_programs_in_the_cache_are_replaced(small, tmp_path):
    command = [*MODULE, "generate", "Hello", *small, "--max-new-tokens", 3]
    env = {"OBSCURA_CACHE_DIR": str(tmp_path)}

    def sizes():
        return {path.name: path.stat().st_size for path in tmp_path.glob("*-cache")}

    first, whole = processes.run(*command, env=env), sizes()
    for number, path in enumerate(sorted(tmp_path.glob("*-cache"))):
        data = bytearray(path.read_bytes())
        if number % 2:
            data[len(data) // 2] ^= 1
        path.write_bytes(data if number % 2 else data[:99])
    second = processes.run(*command, env=env)
    assert sizes().keys() == whole.keys()
    assert min(sizes().values()) > 99
    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*-cache")}
    third = processes.run(*command, env=env)
    assert {path: path.stat().st_mtime_ns for path in written} == written  # none is damaged now
    for done in (first, second, third):
        assert (done.returncode, done.stdout, done.stderr) == (0, first.stdout, "")


def test_a_folder_that_cannot_be_written_is_left_alone(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    before = dict(jax.config.values)
    for folder in (tmp_path / "file", tmp_path / "file" / "x", "/proc/none"):
        monkeypatch.setenv("OBSCURA_CACHE_DIR", str(folder))
        compile_cache.enable_compilation_cache()
    assert dict(jax.config.values) == before
    assert capsys.readouterr() == ("", "")


def test_the_cache_folder_is_the_users(monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    for name in ("OBSCURA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert compile_cache.folder() == Path("/home/me/.cache/obscura_jax")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert compile_cache.folder() == Path("/xdg/obscura_jax")
    monkeypatch.setenv("OBSCURA_CACHE_DIR", "/mine")
    assert compile_cache.folder() == Path("/mine")
    monkeypatch.setenv("OBSCURA_CACHE_DIR", "~/mine")
    assert compile_cache.folder() == Path("/home/me/mine")
    for url in ("gs://bucket/x", "file:///x"):
        monkeypatch.setenv("OBSCURA_CACHE_DIR", url)
        with pytest.raises(ValueError, match=f"{url}.*; set it to a folder, not a URL"):
            compile_cache.folder()


def test_importing_the_library_changes_no_setting():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "from obscura_jax import *; import obscura_jax.decoding.stream, obscura_jax.cli.main\n"
        "assert dict(jax.config.values) == before and len(before) > 50"
    )
    done = processes.run(sys.executable, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
