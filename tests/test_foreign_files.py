"""Files that are damaged, cut short, foreign or missing are refused with a clear message."""

import io
import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from flax.serialization import msgpack_serialize

from obscura_jax.interop.checkpoint import load_model
from tests.support.models import BIASED, bits, course_model, leaves


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


def test_a_flipped_bit_in_a_safetensors_header_never_gives_another_model(native):
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
        else:  # in the metadata, which loading does not use
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


def safetensors_of(header, data=bytes(48), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def header_with(**changes):
    entry = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48], **changes}
    return {"tok_emb.weight": entry}


@pytest.mark.parametrize(
    ("header", "more"),
    [
        (header_with(), {"length": 2**64 - 1}),
        (header_with(), {"length": 2**63}),
        (header_with(), {"length": 200 << 20}),
        (header_with(), {"length": 20}),
        (header_with(), {"data": bytes(47)}),
        (header_with(), {"data": bytes(52)}),
        (b"", {}),
        (b"[]", {}),
        (b"null", {}),
        (b"[" * 100_000, {}),
        (b'{"__metadata__":' + b'{"a":' * 50_000, {}),
        (b'{"\xff": 1}', {}),
        (header_with(dtype="F31"), {}),
        (header_with(dtype=3), {}),
        (header_with(shape=[3, 5]), {}),
        (header_with(shape=[-3, -4]), {}),
        (header_with(shape=[3.0, 4]), {}),
        (header_with(shape=[2**62, 2**62]), {}),
        (header_with(shape=[30, 4], data_offsets=[0, 480]), {}),
        (header_with(data_offsets=[4, 52]), {}),
        (header_with(data_offsets=[48, 0]), {}),
        ({**header_with(), "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, {}),
        ({**header_with(), "__metadata__": {"a": 3}}, {}),
        ({**header_with(), "__metadata__": ["a"]}, {}),
        ({"tok_emb.weight": {"dtype": "F32", "shape": [3, 4]}}, {}),
    ],
)
def test_a_wrong_safetensors_header_is_refused(tmp_path, header, more):
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors_of(header_with()))
    with pytest.raises(
        ValueError, match=r"missing tensors: pos_emb\.weight"
    ):  # a valid file without a model
        load_model(path, n_heads=3)
    path.write_bytes(safetensors_of(header, **more))
    with pytest.raises(ValueError, match=r"x\.safetensors is damaged, cut short or not a") as error:
        load_model(path, n_heads=3)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 1000


TREE = {"wte": {"embedding": np.ones((3, 4), np.float32)}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"is damaged, cut short or not a Flax file"),
        (msgpack_serialize(TREE) + b"x", r"is damaged, cut short or not a Flax file"),
        (msgpack_serialize(TREE).replace(b"\3\4", b"\4\4"), r"is damaged, cut short or not a"),
        (msgpack_serialize(TREE).replace(b"float32", b"object0"), r"is damaged, cut short or not"),
        (b"\x81\xa1a" * 3000 + b"\1", r"is damaged, cut short or not a Flax file"),
        (b"\xc9\xff\xff\xff\xff\1abc", r"is damaged, cut short or not a Flax file"),
        (b"\xdf\xff\xff\xff\xff", r"is damaged, cut short or not a Flax file"),
        (b"\x81\1\x81\2\3", r"is damaged, cut short or not a Flax file|does not hold a tree"),
        (b"\3", r"does not hold a tree of arrays"),
        (b"\xc0", r"does not hold a tree of arrays"),
        (b"\x91\1", r"does not hold a tree of arrays"),
        (msgpack_serialize({"a": 3}), r"does not hold a tree of arrays"),
        (msgpack_serialize({"a": {"b": [1]}}), r"does not hold a tree of arrays"),
        (msgpack_serialize({**TREE, "wte.embedding": np.ones(3)}), r"two tensors of one name"),
        (msgpack_serialize({"params": {}}), r"no known dialect: .*the first are: none"),
        (msgpack_serialize(TREE), r"missing tensors: wpe\.embedding"),
    ],
)
def test_a_wrong_flax_file_is_refused(tmp_path, content, words):
    path = tmp_path / "x.msgpack"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"x\.msgpack.*({words})") as error:
        load_model(path, n_heads=3)
    assert "\n" not in str(error.value)


def test_a_flax_file_cut_short_is_refused_at_any_length(tmp_path):
    path, whole = tmp_path / "x.msgpack", msgpack_serialize(TREE)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"x\.msgpack is damaged, cut short or not a Flax"):
            load_model(path, n_heads=3)


@pytest.mark.parametrize("whole", [True, False])
def test_a_tar_archive_of_an_early_pytorch_is_refused(tmp_path, whole):
    """Reading it could run its code, as torch's own message advises to do."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps({"protocol_version": 1000}, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    (tmp_path / "x.pth").write_bytes(content if whole else content[:700])
    with pytest.raises(ValueError, match=r"x\.pth is a tar archive, .* 0\.1\.10,") as error:
        load_model(tmp_path / "x.pth", n_heads=3)
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[]", "holds a list; it must be a JSON object"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {"a": 3}}', "has no weight_map"),
        ('{"weight_map": {"a": ""}}', "has no weight_map"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "has a duplicate key 'a'"),
        ('{"weight_map": {}}', "no known dialect"),
        ('{"weight_map": {"a": "../../etc/passwd"}}', "the shard passwd is missing"),
        ('{"weight_map": {"a": ".."}}', "the shard .. is missing"),
    ],
)
def test_a_wrong_index_of_shards_is_refused(tmp_path, index, words):
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path)) + ".*" + words):
        load_model(path, n_heads=3)


def test_a_file_with_the_suffix_of_another_format_is_refused(tmp_path, course, native):
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
def test_a_missing_source_raises_file_not_found(source):
    with pytest.raises(FileNotFoundError, match=r"^no model at .*; give a folder"):
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


def test_a_file_without_read_permission_is_reported(course, monkeypatch):
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
        ('{"n_heads": 3, "n_heads": 4}', r"config\.json has a duplicate key 'n_heads'; remove one"),
        ('{"a": {"b": 1, "b": 1}}', r"config\.json has a duplicate key 'b'; remove one"),
        ("null", r"config\.json holds null; it must be a JSON object"),
        ('"text"', r"config\.json holds a string; it must be a JSON object"),
        ("3", r"config\.json holds a value; it must be a JSON object"),
        (json.dumps(GOOD).replace("17", "9" * 5000), r"config\.json is not JSON"),
        ("[]", r"config\.json holds a list; it must be a JSON object, with names and values"),
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
        (
            {**GOOD, "vocab_size": 18},
            r"native: the config says vocab_size=18, but tok_emb.* has 17",
        ),
        ({**GOOD, "context_length": 12}, r"native: the config says context_length=12"),
        ({**GOOD, "n_layers": 3}, r"native: the config says n_layers=3, but the file has 2"),
        ({**GOOD, "n_layers": 10**9}, r"native: the config says n_layers=10+, but the file has 2"),
        ({**GOOD, "qkv_bias": False}, r"native: unexpected tensors: .*W_key\.bias"),
        (
            {**GOOD, "tie_weights": True},
            r"native: out_head\.weight is not tok_emb\.weight, but the config",
        ),
    ],
)
def test_a_bad_config_is_refused(native, text, words):
    text = json.dumps(text) if isinstance(text, dict) else text
    (native / "config.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(ValueError, match=words):
        load_model(native)


def test_a_config_next_to_a_file_of_another_name_is_ignored(course, tmp_path):
    safetensors.torch.save_file(course[1], tmp_path / "course.safetensors")
    (tmp_path / "config.json").write_text('{"name": "something else"}')
    assert load_model(tmp_path / "course.safetensors", n_heads=3)[0].cfg == BIASED


def test_an_impossible_number_of_heads_is_refused(course, native):
    for n_heads in (0, -3, 5, True):
        with pytest.raises(ValueError, match="n_heads"):
            load_model(course[0], n_heads=n_heads)
    with pytest.raises(ValueError, match="has n_heads=3, not 4"):
        load_model(native, n_heads=4)
