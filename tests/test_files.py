"""Model files: read is what was written, bit for bit, and what is not a model is refused."""

import io
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.interop.files import load_model, read_checkpoint, save_course, save_model
from obscura_jax.nn.model import GPTModel
from tools import torch_reference

CFG = GPTConfig(
    vocab_size=17,
    context_length=11,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=False,
)
BIASED = replace(CFG, qkv_bias=True)
LOGITS = 4 * 4.8e-7  # measured: at most 4.8e-7 over 40 seeds, for logits of about 1


def course_model(cfg=BIASED, seed=0):
    """The course's model with every parameter drawn anew: fresh norms and biases hide swaps."""
    torch.manual_seed(seed)
    model = torch_reference.GPTModel(cfg.to_dict()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def bits(state):
    return {name: np.asarray(x).tobytes() for name, x in sorted(state.items())}


def leaves(tree):
    flat = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): x for path, x in flat}


IDS = np.random.default_rng(0).integers(0, 17, (3, 11))


def logits_of(model, params):
    return np.asarray(model.apply({"params": params}, jnp.asarray(IDS, jnp.int32)))


def difference(model, params, reference):
    with torch.no_grad():
        return np.abs(logits_of(model, params) - reference(torch.tensor(IDS)).numpy()).max()


@pytest.fixture
def course(tmp_path):
    """A course checkpoint on disk, and its state dict."""
    state = course_model().state_dict()
    torch.save(state, tmp_path / "course.pth")
    return tmp_path / "course.pth", state


@pytest.fixture
def native(tmp_path, course):
    """A native folder."""
    model, params = load_model(course[0], n_heads=3)
    save_model(tmp_path / "native", model.cfg, params)
    return tmp_path / "native"


# What is read is what was written.


@pytest.mark.parametrize("cfg", [CFG, BIASED])
def test_course_to_native_to_course_keeps_every_bit(tmp_path, cfg):
    rng = np.random.default_rng(1)
    state = course_model(cfg).state_dict()
    for name, tensor in state.items():
        if "mask" not in name:
            values = torch.from_numpy(
                rng.integers(0, 2**32, tensor.shape, np.uint32).view(np.float32)
            )
            state[name] = torch.where(values.isfinite(), values, -0.0)
            state[name].flatten()[:2] = torch.tensor([-0.0, 1e-45])
    torch.save(state, tmp_path / "a.pth")
    first = read_checkpoint(tmp_path / "a.pth", n_heads=3)
    save_model(tmp_path / "native", first.cfg, first.params)
    second = read_checkpoint(tmp_path / "native")
    save_course(tmp_path / "b.pth", second.cfg, second.params)
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert bits(back) == bits(state)
    assert {x.dtype for x in back.values()} == {torch.float32}
    assert (first.dialect, second.dialect) == ("course", "native")
    assert first.cfg == second.cfg == cfg
    back["final_norm.shift"][1] += 1e-45
    assert bits(back) != bits(state)


def test_the_written_checkpoint_is_the_same_model_in_torch(tmp_path, course):
    model, params = load_model(course[0], n_heads=3)
    save_course(tmp_path / "back.pth", model.cfg, params)
    reference = course_model(seed=1)
    assert difference(model, params, reference) > 100 * LOGITS
    reference.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    assert difference(model, params, reference) <= LOGITS


@pytest.mark.parametrize("name", ["W_query", "W_key", "W_value", "out_proj"])
def test_a_transposed_square_matrix_does_not_pass_for_the_same_model(tmp_path, course, name):
    path, state = course
    name = f"trf_blocks.1.att.{name}.weight"
    torch.save({**state, name: state[name].T.contiguous()}, path)
    assert difference(*load_model(path, n_heads=3), course_model()) > 100 * LOGITS
    torch.save({**state, name: state[name].T.contiguous().T}, path)  # the values, column by column
    assert difference(*load_model(path, n_heads=3), course_model()) <= LOGITS


def test_the_native_file_opens_in_torch(native):
    state = safetensors.torch.load_file(native / "model.safetensors")
    reference = course_model(seed=1)
    missing = reference.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == [f"trf_blocks.{n}.att.mask" for n in range(2)]
    assert difference(*load_model(native), reference) <= LOGITS


def test_the_native_form_is_all_that_is_needed(native, tmp_path):
    model, params = load_model(native)
    assert model.cfg == BIASED
    assert model == GPTModel(BIASED)
    assert json.loads((native / "config.json").read_text())["n_heads"] == 3
    same = load_model(native / "model.safetensors")
    assert same[0].cfg == BIASED
    assert bits(leaves(same[1])) == bits(leaves(params))
    assert sorted(os.listdir(native)) == ["config.json", "model.safetensors"]
    (native / "model.safetensors").rename(tmp_path / "alone.safetensors")
    alone = read_checkpoint(tmp_path / "alone.safetensors", n_heads=3)
    assert (alone.dialect, alone.cfg) == ("course", BIASED)
    assert bits(leaves(alone.params)) == bits(leaves(params))


def test_a_tied_model_survives(tmp_path):
    cfg = replace(BIASED, tie_weights=True, ln_eps=1e-6, drop_rate=0)
    params = GPTModel(cfg).init(jax.random.key(0), jnp.asarray(IDS, jnp.int32))["params"]
    save_model(tmp_path / "tied", cfg, params)
    model, read = load_model(tmp_path / "tied")
    assert model.cfg == cfg
    assert bits(leaves(read)) == bits(leaves(params))
    save_course(tmp_path / "tied.pth", cfg, params)
    untied, _ = load_model(tmp_path / "tied.pth", n_heads=3)
    assert untied.cfg.tie_weights is False  # the course's model has a head of its own, equal here
    reference = course_model(seed=1)
    reference.load_state_dict(torch.load(tmp_path / "tied.pth", weights_only=True), strict=True)
    for module in reference.modules():
        if isinstance(module, torch_reference.LayerNorm):
            module.eps = 1e-6
    assert (
        difference(model, read, reference) <= 4 * 3.8e-6
    )  # measured over 40 seeds: 3.8e-6, logits to 14
    reference.out_head.weight.data[3, 5] += 0.1
    assert difference(model, read, reference) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_narrow_files_widen_exactly(tmp_path, dtype, kind):
    state = {name: x.to(dtype) for name, x in course_model().state_dict().items()}
    if dtype is torch.bfloat16:  # out of the reach of float16
        state["final_norm.scale"] *= 2.0**100
        state["final_norm.shift"] *= 2.0**-130
    path = tmp_path / f"narrow.{kind}"
    torch.save(state, path) if kind == "pth" else safetensors.torch.save_file(state, path)
    read = leaves(load_model(path, n_heads=3)[1])
    wide = {name: x.float() for name, x in state.items() if "mask" not in name}
    assert bits(read) == bits(wide)
    assert bits(wide) != bits({name: course_model().state_dict()[name] for name in wide})


def test_narrow_parameters_are_written(tmp_path):
    torch.save(course_model().state_dict(), tmp_path / "a.pth")
    params = load_model(tmp_path / "a.pth", n_heads=3)[1]
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    save_course(tmp_path / "b.pth", BIASED, params)
    save_model(tmp_path / "b", BIASED, params)
    wide = bits(leaves(jax.tree.map(lambda x: np.asarray(x, np.float32), params)))
    for path in (tmp_path / "b.pth", tmp_path / "b"):
        assert bits(leaves(load_model(path, n_heads=3)[1])) == wide


OPTIMISER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.mark.parametrize(
    ("wrapping", "says_heads"),
    [
        (lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMISER}, False),
        (lambda state: {"model": state, "epoch": 3, "loss": torch.tensor(2.5)}, False),
        (lambda state: {"model": state, "config": BIASED.to_dict()}, True),
        (lambda state: {"model": state, "cfg": {"n_heads": 3, "lr": 1e-3, 7: None}}, True),
        (lambda state: {1: state, 2: OPTIMISER, 3: {"n_heads": 3}}, True),
        (lambda state: {"model": {k: torch.nn.Parameter(v) for k, v in state.items()}}, False),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_among_the_entries(course, wrapping, says_heads, zipped):
    path, state = course
    expected = bits(leaves(load_model(path, n_heads=3)[1]))
    torch.save(wrapping(state), path, _use_new_zipfile_serialization=zipped)
    if says_heads:
        assert load_model(path)[0].cfg == BIASED
        with pytest.raises(ValueError, match="has n_heads=3, not 4"):
            load_model(path, n_heads=4)
    else:
        with pytest.raises(ValueError, match="give n_heads"):
            load_model(path)
    model, params = load_model(path, n_heads=3)
    assert model.cfg == BIASED
    assert bits(leaves(params)) == expected


def test_a_seed_is_a_model(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", CFG)
    checkpoint = read_checkpoint("torch-seed:123:tiny")
    torch.manual_seed(123)
    state = torch_reference.GPTModel(CFG.to_dict()).state_dict()
    assert (checkpoint.dialect, checkpoint.cfg, checkpoint.audit) == ("torch-seed", CFG, [])
    for name, leaf in leaves(checkpoint.params).items():
        np.testing.assert_allclose(leaf, state[name].numpy(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="has n_heads=3, not 4"):
        read_checkpoint("torch-seed:123:tiny", n_heads=4)


@pytest.mark.parametrize(
    "source",
    ["", "x", "1.5", "1e3", "1:nope", "1:", "1:tiny:", " 1", "0x10", "--1", "9" * 5000, "9" * 20],
)
def test_a_malformed_seed_is_refused(source):
    with pytest.raises(ValueError, match=r"torch-seed:N|64 bits"):
        read_checkpoint(f"torch-seed:{source}")


# What is damaged or foreign is refused.


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


def test_no_flipped_bit_of_a_checkpoint_passes_for_another_model(course):
    path, _ = course
    whole = path.read_bytes()
    expected = bits(leaves(load_model(path, n_heads=3)[1]))
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(whole), 250, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = load_model(path, n_heads=3)[1]
        except ValueError:
            refused += 1
        else:  # in the padding between the tensors
            assert bits(leaves(read)) == expected
    assert 125 < refused < 250


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
    course[0].rename(tmp_path / "course.bin")
    with pytest.raises(ValueError, match=r"does not end in \.safetensors, \.pth or \.pt"):
        load_model(tmp_path / "course.bin", n_heads=3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds one object of type list"),
        (3, "holds one object of type int"),
        (torch.zeros(3), "holds one object of type Tensor"),
        ({}, "holds 0 state dicts, not one; its entries: none"),
        ({"a": 1, 2: "b"}, "holds 0 state dicts, not one; its entries: a, 2"),
        ({"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, "holds 2 state dicts"),
        ({3: torch.zeros(1)}, "entry 3 of the state dict is not a named tensor"),
        ({"a": torch.zeros(1), "b": 3}, "entry 'b' of the state dict is not a named tensor"),
        ({"a": torch.zeros(3).to_sparse()}, "a is not a plain array"),
        ({"a": torch.zeros(3, device="meta")}, "a is not a plain array"),
        ({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, "a is not a plain array"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "x.pth", n_heads=3)


def test_a_type_that_numpy_lacks_is_refused(tmp_path):
    state = {name: x.to(torch.float8_e4m3fn) for name, x in course_model().state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="of a type that NumPy lacks"):
        load_model(tmp_path / "x.safetensors", n_heads=3)


def test_torchs_advice_to_its_callers_is_not_for_ours(course):
    path, state = course
    torch.save(state, path, pickle_protocol=3)  # "might not support all instructions"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_model(path, n_heads=3)
        assert seen == []
        torch.load(path, weights_only=True)
        assert len(seen) == 1


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, protocol, kind):
    witness = tmp_path / "witness"
    content = {"tok_emb.weight": Code(f"touch {witness}"), "pos_emb.weight": torch.zeros(3)}
    path = tmp_path / "x.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["tok_emb.weight"], protocol))
    else:
        torch.save(
            content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip"
        )
    with pytest.raises(ValueError, match=r"x\.pth refused: its pickle calls (posix|nt)\.system,"):
        load_model(path, n_heads=3)
    assert not witness.exists()
    if kind == "pickle":  # the file is what it is said to be
        pickle.loads(path.read_bytes())
        assert witness.exists()


def test_a_whole_module_is_refused_and_the_state_dict_asked_for(tmp_path):
    torch.save(course_model(), tmp_path / "x.pth")
    words = r"calls tools\.torch_reference\.GPTModel, .* save model\.state_dict\(\), not the model"
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "x.pth", n_heads=3)


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
        (json.dumps(GOOD).encode("utf-16"), r"config\.json is not JSON"),
        (json.dumps(GOOD).replace("17", "9" * 5000), r"config\.json is not JSON"),
        ("[]", r'no "format": "obscura_jax"'),
        ("{}", r'no "format": "obscura_jax"'),
        ({**GOOD, "format": "pt"}, r'no "format": "obscura_jax"'),
        ({**GOOD, "n_head": 3}, r"config\.json: the config has unknown entries: n_head"),
        ({k: v for k, v in GOOD.items() if k != "n_heads"}, r"config\.json: .* lacks n_heads"),
        ({**GOOD, "n_heads": "3"}, r"config\.json: n_heads must be a whole number"),
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


# Writing: whole or not at all, and never onto something else.


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_destinations_of_the_wrong_sort_are_refused(tmp_path, course):
    model, params = load_model(course[0], n_heads=3)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "full" / "config.json").write_text("mine")
    before = contents(tmp_path)
    for save, name, words in (
        (save_model, "file", "is a file; the native form is a folder"),
        (save_model, "file/folder", "cannot be written: Not a directory"),
        (save_model, "course.pth", "is a file's name, and the native form is a folder"),
        (save_model, "new.safetensors", "is a file's name, and the native form is a folder"),
        (save_model, "full", r"model\.safetensors is a folder"),
        (save_model, "x" * 300, "cannot be written: File name too long"),
        (save_course, "full", "is a folder; a course checkpoint is a file"),
        (save_course, "file", r"must end in \.pth or \.pt"),
        (save_course, "new", r"must end in \.pth or \.pt"),
        (save_course, "file/new.pth", "cannot be written: (Not a directory|File exists)"),
    ):
        with pytest.raises(ValueError, match=words):
            save(tmp_path / name, model.cfg, params)
    for save in (save_model, save_course):
        with pytest.raises(ValueError, match="the destination is empty"):
            save("", model.cfg, params)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("save", [save_model, save_course])
def test_wrong_parameters_leave_nothing_behind(tmp_path, save):
    with pytest.raises(ValueError, match="missing tensors"):
        save(tmp_path / "new" / "x.pth", BIASED, {})
    with pytest.raises(ValueError, match="the config lacks"):
        save(tmp_path / "new" / "x.pth", {"vocab_size": 17}, {})
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from obscura_jax.interop.files import load_model, save_course, save_model
model, params = load_model(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # what a full disk is, at 5000 bytes
for save, path in ((save_model, sys.argv[2]), (save_course, sys.argv[3])):
    try:
        save(path, model.cfg, params)
    except ValueError as error:
        print(error)
"""


def test_a_full_disk_loses_nothing(tmp_path, native, course):
    other = course_model(seed=2).state_dict()
    torch.save(other, tmp_path / "other.pth")
    model, params = load_model(tmp_path / "other.pth", n_heads=3)
    save_model(tmp_path / "other", model.cfg, params)
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path / "other", native, course[0]],
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = done.stdout.splitlines()
    assert f"{native} cannot be written: " in first
    assert f"{course[0]} cannot be written: " in second
    assert contents(tmp_path) == before


def test_a_config_that_cannot_be_written_leaves_the_old_weights(native, monkeypatch):
    before = contents(native)
    model, params = load_model(native)
    params = jax.tree.map(lambda x: x + 1, params)

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(ValueError, match=r"native cannot be written: No space left"):
            save_model(native, model.cfg, params)
    assert contents(native) == before
    save_model(native, model.cfg, params)
    assert contents(native).keys() == before.keys()
    assert contents(native) != before


def test_a_model_may_be_written_over_its_own_source(native, course):
    before = contents(native)
    model, params = load_model(native)
    save_model(native, model.cfg, params)
    assert contents(native) == before
    model, params = load_model(course[0], n_heads=3)
    save_course(course[0], model.cfg, params)
    assert bits(torch.load(course[0], weights_only=True)) == bits(course[1])


def test_files_are_as_readable_as_any(tmp_path, native):
    (tmp_path / "any").touch()
    model, params = load_model(native)
    save_course(tmp_path / "x.pth", model.cfg, params)
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "any", tmp_path / "x.pth", *native.iterdir())
    }
    assert len(modes) == 1


# Without torch.


def test_without_torch_only_its_files_are_out_of_reach(tmp_path, course, native, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model, params = load_model(native)
    save_model(tmp_path / "copy", model.cfg, params)
    with pytest.raises(ValueError, match=r"reading .*course\.pth needs torch: pip install"):
        load_model(course[0], n_heads=3)
    with pytest.raises(ValueError, match=r"writing a course checkpoint needs torch: pip install"):
        save_course(tmp_path / "x.pth", model.cfg, params)
    assert not (tmp_path / "x.pth").exists()


def test_the_metadata_is_what_torch_tools_expect(native):
    with safetensors.safe_open(native / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}
