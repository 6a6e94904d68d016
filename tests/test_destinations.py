"""No model is replaced by accident, and none is read with parts of an earlier one."""

import errno
import json
import mmap
import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from obscura_jax import load_model, load_tokenizer, save_model
from obscura_jax.atomic_files import new_folders, remove_temporary_paths
from obscura_jax.cli.main import main
from obscura_jax.export.artifact import load_artifact
from obscura_jax.export.exporter import export_model
from obscura_jax.interop.checkpoint import read_checkpoint, save_course, save_hf, save_nanogpt
from obscura_jax.interop.locate import is_exported
from obscura_jax.interop.tokens import TokenRecord, gpt2_record
from tests.support import processes
from tests.support.models import bits, leaves
from tests.support.tokenizer_folders import bpe, config, hf_folder, weights, write_json

CFG = config(300)
OF_TOKENIZER = (
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "vocab.txt",
    "chat_template.jinja",
)


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def fails(capsys):
    """Return a function that runs a command, which must end with code 2 and one line."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words)])
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
        return err

    return run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "out"
    export_model(path, CFG, weights(300), platforms=["cpu"])
    return path


# Replacing.


def test_convert_replaces_a_model_only_on_request(tmp_path, fails):
    for name, seed in (("old", 0), ("new", 1)):
        save_model(tmp_path / name, CFG, weights(300, seed=seed))
    for kind, name in (("native", "a"), ("hf", "b"), ("nanogpt", "c.pt"), ("course", "d.pth")):
        main(["convert", str(tmp_path / "old"), str(tmp_path / name), "--to", kind])
        before = contents(tmp_path)
        words = ("convert", tmp_path / "new", tmp_path / name, "--to", kind)
        line = fails(*words)
        assert f"{tmp_path / name} holds a model" in line or f"{tmp_path / name} exists" in line
        assert "(--overwrite) to replace it, or name another" in line
        assert contents(tmp_path) == before
        main([*map(str, words), "--overwrite"])
        assert contents(tmp_path) != before
        found = read_checkpoint(tmp_path / name, n_heads=3).params
        new = leaves(load_model(tmp_path / "new")[1])
        assert bits({n: x for n, x in leaves(found).items() if n in new}) == bits(new)


def test_convert_replaces_its_own_source_only_on_request(tmp_path, fails):
    source = hf_folder(tmp_path / "a", 300, eos_token_id=5)
    bpe(300).save(str(source / "tokenizer.json"))
    definition = (source / "tokenizer.json").read_bytes()
    before = contents(source)
    assert "holds a model" in fails("convert", source, source)
    assert contents(source) == before
    params = leaves(load_model(source)[1])
    main(["convert", str(source), str(source), "--overwrite"])
    assert read_checkpoint(source).dialect == "native"
    assert bits(leaves(load_model(source)[1])) == bits(params)
    assert (source / "tokenizer.json").read_bytes() == definition
    assert read_checkpoint(source).tokens.eos_token_id == 5


@pytest.mark.parametrize(
    "mark",
    [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "model.safetensors.index.json",
        "flax_model.msgpack",
        "manifest.json",
    ],
)
def test_a_folder_with_any_part_of_a_model_is_protected(tmp_path, fails, mark):
    save_model(tmp_path / "m", CFG, weights(300))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    main(["convert", str(tmp_path / "m"), str(tmp_path / "full")])  # it held no model
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / mark).write_text("mine")
    for command in ("convert", "export"):
        line = fails(command, tmp_path / "m", tmp_path / "other")
        assert f"holds a model ({mark}), which would be lost" in line
    assert (tmp_path / "other" / mark).read_text() == "mine"
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


@pytest.mark.slow
def test_export_replaces_a_model_only_on_request(tmp_path, exported, fails):
    save_model(tmp_path / "m", CFG, weights(300), tokens=gpt2_record(CFG))
    before = contents(exported)
    assert "holds a model (manifest.json)" in fails("export", tmp_path / "m", exported)
    assert contents(exported) == before
    words = ["export", str(tmp_path / "m"), str(tmp_path / "m"), "--platforms", "cpu"]
    assert "holds a model (config.json)" in fails(*words)
    main([*words, "--overwrite"])
    assert is_exported(tmp_path / "m")
    assert "config.json" not in names(tmp_path / "m")
    assert "tokens.json" not in names(tmp_path / "m")
    assert load_tokenizer(tmp_path / "m", CFG).notice == ""


@pytest.mark.parametrize("save", [save_model, save_hf, save_nanogpt, save_course])
def test_saving_in_python_replaces_unless_overwrite_is_false(tmp_path, save):
    path = tmp_path / ("m" if save in (save_model, save_hf) else "m.pt")
    save(path, CFG, weights(300), overwrite=False)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"pass overwrite=True \(--overwrite\) to replace it"):
        save(path, CFG, weights(300, seed=1), overwrite=False)
    assert contents(tmp_path) == before
    save(path, CFG, weights(300, seed=1))
    assert contents(tmp_path) != before


# Nothing of an earlier model.


@pytest.mark.parametrize("save", [save_model, save_hf])
def test_no_file_of_an_earlier_model_is_read_with_the_new_one(tmp_path, exported, save):
    old = tmp_path / "old"
    old.mkdir()
    for path in exported.iterdir():
        (old / path.name).write_bytes(path.read_bytes())
    for name in OF_TOKENIZER:
        write_json(old / name, {"eos_token_id": 5})
    write_json(old / "tokens.json", {"tokenizer": "gpt2", "eos_token_id": 5})
    (old / "notes.txt").write_text("mine")
    save(old, CFG, weights(300))
    assert names(old) == ["config.json", "model.safetensors", "notes.txt"]
    found = read_checkpoint(old)
    assert found.tokens == TokenRecord()
    assert bits(leaves(found.params)) == bits(leaves(weights(300)))
    trained = bpe(300)
    trained.save(str(tmp_path / "tokenizer.json"))
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    save(old, CFG, weights(300), tokens=TokenRecord(None, {"eos_token_id": 0}, files))
    assert load_tokenizer(old, CFG).encode("Hello") == trained.encode("Hello").ids
    save(old, CFG, weights(300), tokens=read_checkpoint(old).tokens)  # its own files stay
    assert load_tokenizer(old, CFG).encode("Hello") == trained.encode("Hello").ids
    save(old, CFG, weights(300), tokens=TokenRecord(None, {"eos_token_id": 9}))
    assert load_tokenizer(old, CFG).notice
    assert read_checkpoint(old).tokens.eos_token_id == 9


def test_a_manifest_of_another_program_is_kept(tmp_path, capsys):
    save_model(tmp_path / "m", CFG, weights(300), tokens=gpt2_record(CFG))
    write_json(tmp_path / "m" / "manifest.json", {"name": "a page", "format": "x"})
    main(["info", str(tmp_path / "m")])
    assert "dialect              native" in capsys.readouterr().out
    assert load_tokenizer(tmp_path / "m", CFG).notice == ""
    save_model(tmp_path / "m", CFG, weights(300, seed=1))
    assert names(tmp_path / "m") == ["config.json", "manifest.json", "model.safetensors"]


def test_an_export_removes_the_files_of_an_earlier_one(tmp_path, exported):
    old = tmp_path / "old"
    old.mkdir()
    for name in ("decode.tpu.jaxexport", "tokenizer.json", "config.json", "tokens.json"):
        (old / name).write_text("{}")
    files = export_model(old, CFG, weights(300), platforms=["cpu"], overwrite=True)
    assert names(old) == sorted(files) == names(exported)


def test_a_changed_tokenizer_file_is_detected(tmp_path, fails):
    trained = bpe(300)
    source = hf_folder(tmp_path / "a", 300)
    trained.save(str(source / "tokenizer.json"))
    main(["export", str(source), str(tmp_path / "b"), "--platforms", "cpu"])
    load_artifact(tmp_path / "b")
    path = tmp_path / "b" / "tokenizer.json"
    definition = json.loads(path.read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    write_json(path, definition)
    words = ("generate", "--model", tmp_path / "b", "a", "--no-compile-cache")
    assert "tokenizer.json is damaged: its SHA-256 differs from manifest.json" in fails(*words)
    path.unlink()
    assert "is incomplete: tokenizer.json is missing" in fails(*words)


# Never in place.


def test_a_mapped_file_keeps_its_bytes_when_the_model_is_replaced(tmp_path):
    save_model(tmp_path / "m", CFG, weights(300))
    path = tmp_path / "m" / "model.safetensors"
    before, number = path.read_bytes(), path.stat().st_ino
    mapped_params = leaves(load_model(tmp_path / "m")[1])
    old = bits(mapped_params)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        save_model(tmp_path / "other", CFG, weights(300, seed=1))
        main(["convert", str(tmp_path / "other"), str(tmp_path / "m"), "--overwrite"])
        assert path.stat().st_ino != number
        assert path.read_bytes() != before
        assert mapped[:] == before
    assert bits(mapped_params) == old != bits(leaves(load_model(tmp_path / "m")[1]))


def test_single_files_are_not_written_in_place(tmp_path):
    for save, name in (
        (save_course, "a.pth"),
        (save_course, "a.safetensors"),
        (save_nanogpt, "b.pt"),
    ):
        save(tmp_path / name, CFG, weights(300))
        number = (tmp_path / name).stat().st_ino
        with (tmp_path / name).open("rb") as file:
            before = (tmp_path / name).read_bytes()
            save(tmp_path / name, CFG, weights(300, seed=1))
            assert file.read() == before
        assert (tmp_path / name).stat().st_ino != number


# No empty folders.


def test_a_conversion_that_fails_leaves_no_folder(tmp_path, fails, monkeypatch):
    save_model(tmp_path / "m", CFG, weights(300))
    (tmp_path / "mine").mkdir()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("obscura_jax.interop.checkpoint.write_safetensors", full)
    before = sorted(tmp_path.rglob("*"))
    for words in (["a/b/c"], ["mine"], ["mine/new"], ["x/y", "--to", "hf"]):
        line = fails("convert", tmp_path / "m", tmp_path / words[0], *words[1:])
        assert "cannot be written: No space left on device" in line
        assert sorted(tmp_path.rglob("*")) == before
    for words in (["x/y.pth", "--to", "nanogpt"], ["x/y.pth", "--to", "course"]):
        monkeypatch.setattr("obscura_jax.interop.checkpoint.write_torch", full)
        assert "No space left" in fails("convert", tmp_path / "m", tmp_path / words[0], *words[1:])
        assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr("obscura_jax.export.exporter.write_safetensors", full)
    assert "No space left" in fails(
        "export", tmp_path / "m", tmp_path / "a" / "b", "--platforms", "cpu"
    )
    assert sorted(tmp_path.rglob("*")) == before


INTERRUPTED = """
import os, sys, threading
from obscura_jax.__main__ import run
from obscura_jax.interop import checkpoint

write = checkpoint.write_safetensors


def interrupted(path, tensors):
    write(path, tensors)
    assert path.is_file()
    os.kill(os.getpid(), int(number))
    threading.Event().wait()


checkpoint.write_safetensors = interrupted
number, *sys.argv[1:] = sys.argv[1:]
run()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_conversion_that_is_interrupted_leaves_no_folder(tmp_path, number):
    save_model(tmp_path / "m", CFG, weights(300))
    (tmp_path / "mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for name in ("a/b", "mine/new", "mine"):
        words = [str(int(number)), "convert", tmp_path / "m", tmp_path / name]
        done = processes.run(sys.executable, "-c", INTERRUPTED, *words)
        assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")
        assert sorted(tmp_path.rglob("*")) == before


def test_only_new_and_empty_folders_are_removed(tmp_path):
    (tmp_path / "old").mkdir()
    with new_folders(tmp_path / "old" / "a" / "b", tmp_path / "old" / "c", tmp_path / "old"):
        assert (tmp_path / "old" / "a" / "b").is_dir()
        (tmp_path / "old" / "c" / "file").write_text("mine")
    assert names(tmp_path / "old") == ["c"]
    with new_folders(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()
    with (
        pytest.raises(OSError, match="Not a directory"),
        new_folders(tmp_path / "old" / "d", tmp_path / "old" / "c" / "file" / "x"),
    ):
        raise AssertionError("not reached")
    assert names(tmp_path / "old") == ["c"]
    with new_folders(tmp_path / "e" / "f"):
        remove_temporary_paths()  # as a signal does
        assert not (tmp_path / "e").exists()


def test_a_new_folder_is_kept_if_the_model_is_written(tmp_path):
    save_model(tmp_path / "a" / "b", CFG, weights(300))
    assert names(tmp_path / "a" / "b") == ["config.json", "model.safetensors"]
    relative = Path(os.path.relpath(tmp_path / "c" / "d"))
    save_model(relative, CFG, jax.tree.map(np.asarray, weights(300)))
    assert names(tmp_path / "c" / "d") == ["config.json", "model.safetensors"]
