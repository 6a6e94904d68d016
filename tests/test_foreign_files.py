"""What is damaged, cut short, foreign or missing is refused, in words that say so."""

import io
import json
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from obscura_jax.interop.files import load_model
from tests.checkpoints import BIASED, bits, course_model, leaves


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("a.pth", torch.save),
        ("b.pt", save_legacy),
        ("c.safetensors", safetensors.torch.save_file),
    ],
)
def test_a_file_cut_short_is_refused_at_any_length(tmp_path, course, name, save):
    path = tmp_path / name
    save(course[1], path)
    whole = path.read_bytes()
    load_model(path, n_heads=3)
    lengths = {*range(0, 40, 3), *range(40, len(whole), len(whole) // 100), len(whole) - 1}
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"^{re.escape(str(path))} (is damaged, cut|refused)"):
            load_model(path, n_heads=3)


def test_no_flipped_bit_of_a_safetensors_header_passes_for_another_model(native):
    path = native / "model.safetensors"
    whole = path.read_bytes()
    expected = bits(leaves(load_model(native)[1]))
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(8 + int.from_bytes(whole[:8], "little"), 100, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = load_model(native)[1]
        except ValueError:
            refused += 1
        else:  # in the metadata, which nothing depends on
            assert bits(leaves(read)) == expected
    assert refused > 90


PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(500)


def zip_of_text():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.txt", "hello")
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["x.pth", "x.PT", "x.safetensors", "folder/model.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"h",
        b"hello world",
        b"code\nis not\na model\n",
        b'{"format": "obscura_jax"}',
        PICTURE,
        bytes(1000),
        b"\xff" * 1000,
        zip_of_text(),
        pickle.dumps([1, 2]),
        pickle.dumps(3, protocol=2),
    ],
)
def test_a_foreign_file_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged, cut short or not a .* again$"):
        load_model(path, n_heads=3)


def test_a_file_of_the_other_kind_is_refused(tmp_path, course, native):
    (tmp_path / "a.safetensors").write_bytes(course[0].read_bytes())
    (tmp_path / "b.pth").write_bytes((native / "model.safetensors").read_bytes())
    for name in ("a.safetensors", "b.pth"):
        with pytest.raises(ValueError, match="is damaged, cut short or not a"):
            load_model(tmp_path / name, n_heads=3)
    course[0].rename(tmp_path / "course.gguf")
    with pytest.raises(ValueError, match=r"does not end in \.safetensors, \.pth, \.pt, \.bin"):
        load_model(tmp_path / "course.gguf", n_heads=3)


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    state = {name: x.to(torch.float8_e4m3fn) for name, x in course_model().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="of a type that NumPy lacks"):
        load_model(tmp_path / "x.safetensors", n_heads=3)


@pytest.mark.parametrize("source", ["nothing.pth", "nothing", "", "a\0b", "x" * 5000, "a/" * 3000])
def test_nothing_there_is_file_not_found(source):
    with pytest.raises(FileNotFoundError, match=r"^no model at .*: give a folder"):
        load_model(source)


def test_a_folder_must_hold_both_files(tmp_path, native):
    with pytest.raises(FileNotFoundError, match=r"the folder has no model\.safetensors"):
        load_model(tmp_path)
    (native / "config.json").rename(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError, match=r"the folder has no config\.json"):
        load_model(native)
    (native / "config.json").mkdir()
    with pytest.raises(FileNotFoundError, match=r"the folder has no config\.json"):
        load_model(native)
    with pytest.raises(ValueError, match=r"config\.json is not a file"):
        load_model(native / "model.safetensors")


def test_what_may_not_be_read_is_said_to_be(course, monkeypatch):
    def closed(self, *args):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(ValueError, match=r"course\.pth cannot be read: Permission denied$"):
        load_model(course[0], n_heads=3)


GOOD = {"format": "obscura_jax", **BIASED.to_dict()}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"config\.json is not JSON"),
        ("{", r"config\.json is not JSON"),
        ("[" * 200_000, r"config\.json is not JSON"),
        ("\ufeff{}", r"config\.json is not JSON"),
        (json.dumps(GOOD).encode("utf-16"), r"config\.json is not UTF-8 text"),
        (json.dumps(GOOD).encode()[:-1] + b', "a": "\xe9"}', r"config\.json is not UTF-8 text"),
        ('{"n_heads": 3, "n_heads": 4}', r"config\.json has the key 'n_heads' twice: remove one"),
        ('{"a": {"b": 1, "b": 1}}', r"config\.json has the key 'b' twice: remove one"),
        ("null", r"config\.json is not a JSON object, .* but null"),
        ('"text"', r"config\.json is not a JSON object, .* but a string"),
        ("3", r"config\.json is not a JSON object, .* but a value"),
        (json.dumps(GOOD).replace("17", "9" * 5000), r"config\.json is not JSON"),
        ("[]", r"config\.json is not a JSON object, with names and values, but a list"),
        ("{}", r'no "format": "obscura_jax"'),
        ({**GOOD, "format": "pt"}, r'no "format": "obscura_jax"'),
        ({**GOOD, "n_head": 3}, r"config\.json: the config has unknown entries: n_head"),
        ({k: v for k, v in GOOD.items() if k != "n_heads"}, r"config\.json: .* lacks n_heads"),
        ({**GOOD, "n_heads": "3"}, r"config\.json: n_heads must be a whole number"),
        ({**GOOD, "n_heads": 3.0}, r"config\.json: n_heads must be a whole number .* got 3\.0"),
        ({**GOOD, "n_heads": True}, r"config\.json: n_heads must be a whole number .* got True"),
        ({**GOOD, "n_heads": None}, r"config\.json: n_heads must be a whole number .* got None"),
        ({**GOOD, "drop_rate": None}, r"config\.json: drop_rate must be a number in .* got None"),
        ({**GOOD, "ln_eps": float("inf")}, r"config\.json: ln_eps must be a number in .* got inf"),
        ({**GOOD, "qkv_bias": "true"}, r"config\.json: qkv_bias must be True or False, got 'true'"),
        ({**GOOD, "n_heads": 0}, r"config\.json: n_heads must be a whole number"),
        ({**GOOD, "n_heads": 5}, r"config\.json: emb_dim=12 is not divisible by n_heads=5"),
        ({**GOOD, "drop_rate": float("nan")}, r"config\.json: drop_rate"),
        ({**GOOD, "ln_eps": 10**400}, r"config\.json: ln_eps"),
        ({**GOOD, "vocab_size": 18}, r"native: the config says vocab_size=18, tok_emb.* has 17"),
        ({**GOOD, "context_length": 12}, r"native: the config says context_length=12"),
        ({**GOOD, "n_layers": 3}, r"native: missing tensors: trf_blocks\.2"),
        ({**GOOD, "n_layers": 10**9}, r"native: the config says n_layers=10+, there are 2"),
        ({**GOOD, "qkv_bias": False}, r"native: unexpected tensors: .*W_key\.bias"),
        ({**GOOD, "tie_weights": True}, r"native: unexpected tensors: out_head"),
    ],
)
def test_a_bad_config_is_refused(native, text, words):
    text = json.dumps(text) if isinstance(text, dict) else text
    (native / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=words):
        load_model(native)


def test_a_config_beside_a_file_of_another_name_is_not_its_own(course, tmp_path):
    safetensors.torch.save_file(course[1], tmp_path / "course.safetensors")
    (tmp_path / "config.json").write_text('{"name": "something else"}')
    assert load_model(tmp_path / "course.safetensors", n_heads=3)[0].cfg == BIASED


def test_heads_that_do_not_fit_are_refused(course, native):
    for n_heads in (0, -3, 5, True):
        with pytest.raises(ValueError, match="n_heads"):
            load_model(course[0], n_heads=n_heads)
    with pytest.raises(ValueError, match="has n_heads=3, not 4"):
        load_model(native, n_heads=4)
