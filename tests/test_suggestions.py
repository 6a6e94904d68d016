"""The commands that train and export print at the end work when pasted into a shell."""

import shlex
import sys

import pytest

from obscura_jax import save_model
from obscura_jax.cli.main import main
from obscura_jax.cli.suggestions import generate_command
from obscura_jax.interop.tokens import TokenRecord, gpt2_record
from obscura_jax.text import sample_text
from tests.support.tokenizer_folders import bpe, config, hf_folder, weights

ODD = "a b'c $HOME"  # a shell would split and expand it


@pytest.fixture
def pasted(capsys):
    """Run the last line that a command printed, as a shell splits it; return what it prints."""

    def run(*words):
        capsys.readouterr()
        main([*map(str, words)])
        command = shlex.split(capsys.readouterr().out.splitlines()[-1])
        assert command[:3] == ["obscura", "generate", "--model"]
        main([*command[1:], "--no-compile-cache"])
        out, err = capsys.readouterr()
        assert err == ""
        return command[3:], out

    return run


def train(text, out, *more):
    sizes = ["--vocab-size", 300, "--emb-dim", 8, "--n-heads", 2, "--n-layers", 1]
    return ["train", "--text", text, "--out", out, *sizes, "--steps", 1, "--batch-size", 2, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("context", "prompt"), [(2, "A"), (3, "The")])
def test_a_trained_model_continues_the_suggested_prompt(tmp_path, pasted, context, prompt):
    (tmp_path / "text.txt").write_text(sample_text(), encoding="utf-8")
    out = tmp_path / ODD / "run"
    words = train(tmp_path / "text.txt", out, "--context-length", context)
    command, text = pasted(*words)
    assert command == [str(out / "model"), prompt]
    assert text.startswith(prompt)
    assert len(text) > len(prompt) + 1


@pytest.mark.slow
def test_an_exported_model_continues_the_suggested_prompt(tmp_path, pasted):
    trained = bpe(300)
    source = hf_folder(tmp_path / "a", 300, 8)
    trained.save(str(source / "tokenizer.json"))
    out = tmp_path / ODD
    assert pasted("export", source, out, "--platforms", "cpu")[0] == [str(out), "The"]
    save_model(tmp_path / "ids", config(65, 2), weights(65, 2))
    out = tmp_path / "exported ids"
    command, text = pasted("export", tmp_path / "ids", out, "--platforms", "cpu")
    assert command == [str(out), "--ids", "0"]
    assert len(text.split()) == 2


@pytest.mark.slow
def test_a_context_of_one_token(tmp_path, capsys):
    """It generates only with --sliding, which exported models do not support."""
    cfg = config(300, 1)
    save_model(tmp_path / "m", cfg, weights(300, 1), tokens=gpt2_record(cfg))
    command = shlex.split(generate_command(tmp_path / "m", cfg))
    assert command[4:] == ["--ids", "0", "--sliding"]
    main([*command[1:], "--max-new-tokens", "3", "--no-compile-cache"])
    assert len(capsys.readouterr().out.split()) == 4
    main(["export", str(tmp_path / "m"), str(tmp_path / "out"), "--platforms", "cpu"])
    assert "obscura generate" not in capsys.readouterr().out


def test_token_ids_are_suggested_if_no_tokenizer_can_be_read(tmp_path, monkeypatch):
    cfg = config(300)
    source = hf_folder(tmp_path / "a", 300)
    bpe(300).save(str(source / "tokenizer.json"))
    assert generate_command(source, cfg).endswith(" The")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert generate_command(source, cfg).endswith(" --ids 0")
    save_model(tmp_path / "m", config(65), weights(65), tokens=TokenRecord())
    assert generate_command(tmp_path / "m", config(65)).endswith(" --ids 0")


@pytest.mark.slow
def test_a_stopped_training_suggests_its_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text(sample_text(), encoding="utf-8")
    out = tmp_path / ODD

    class Stopped:
        def __enter__(self):
            return lambda: 15

        def __exit__(self, *error):
            pass

    with monkeypatch.context() as patch:
        patch.setattr("obscura_jax.cli.train.deferred", Stopped)
        with pytest.raises(SystemExit) as stop:
            main([*map(str, train(tmp_path / "text.txt", out, "--context-length", 9))])
    assert stop.value.code == 128 + 15
    said, command = capsys.readouterr().out.splitlines()[-1].split(": ")
    assert said.startswith("saved after step ")
    assert shlex.split(command) == ["obscura", "train", "--out", str(out), "--resume"]
    main(shlex.split(command)[1:])
    assert (out / "model" / "tokens.json").is_file()
