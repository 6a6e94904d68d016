"""A model is read as it was written, and its files are written completely or not at all."""

import errno
import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from obscura_jax.config import PRESETS
from obscura_jax.interop.checkpoint import load_model, read_checkpoint, save_course, save_model
from obscura_jax.interop.torch_files import write_torch
from obscura_jax.nn.model import GPTModel
from obscura_jax.parity.gpt import torch_reference
from tests.support import processes
from tests.support.models import (
    BIASED,
    CFG,
    IDS,
    LOGITS,
    bits,
    course_model,
    difference,
    leaves,
)


def test_the_native_file_opens_in_torch(native):
    state = safetensors.torch.load_file(native / "model.safetensors")
    reference = course_model(seed=1)
    missing = reference.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert missing.missing_keys == [f"trf_blocks.{n}.att.mask" for n in range(2)]
    assert difference(*load_model(native), reference) <= LOGITS


def test_parameters_are_views_of_the_mapped_file(native):
    """Nothing is copied, and writing to the memory, as a donation does, leaves the file alone."""
    path = native / "model.safetensors"
    before = path.read_bytes()
    assert (8 + int.from_bytes(before[:8], "little")) % 64 == 0
    weight = load_model(native)[1]["final_norm"][
        "scale"
    ]  # the first tensor, at the beginning of the data
    own_memory = jax.numpy.array(weight)
    assert in_a_mapped_file(weight)
    assert not in_a_mapped_file(own_memory)
    jax.block_until_ready(jax.jit(lambda x: x + 1, donate_argnums=0)(weight))
    assert path.read_bytes() == before


def in_a_mapped_file(array):
    """Look the address up in Linux's memory map of this process."""
    address = array.unsafe_buffer_pointer()
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(x, 16) for x in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith("model.safetensors")
    raise AssertionError("no such memory")


def test_data_of_another_writer_may_begin_at_any_offset(native, tmp_path):
    tensors = safetensors.numpy.load_file(native / "model.safetensors")
    (tmp_path / "config.json").write_bytes((native / "config.json").read_bytes())
    starts = set()
    for pad in range(0, 64, 8):
        path = tmp_path / "model.safetensors"
        path.unlink(missing_ok=True)
        safetensors.numpy.save_file(tensors, path, metadata={"pad": "x" * pad})
        starts.add(int.from_bytes(path.read_bytes()[:8], "little") % 64)
        assert bits(leaves(load_model(tmp_path)[1])) == bits(leaves(load_model(native)[1]))
    assert len(starts) == 8


def test_a_native_folder_is_complete(native, tmp_path):
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


def test_a_tied_model_is_read_as_it_was_written(tmp_path):
    cfg = replace(BIASED, tie_weights=True, drop_rate=0)
    params = GPTModel(cfg).init(jax.random.key(0), jnp.asarray(IDS, jnp.int32))["params"]
    save_model(tmp_path / "tied", cfg, params)
    model, read = load_model(tmp_path / "tied")
    assert model.cfg == cfg
    assert bits(leaves(read)) == bits(leaves(params))
    save_course(tmp_path / "tied.pth", cfg, params)
    untied, _ = load_model(tmp_path / "tied.pth", n_heads=3)
    assert (
        untied.cfg.tie_weights is False
    )  # the course's model always has a head, here an equal one
    reference = course_model(seed=1)
    reference.load_state_dict(torch.load(tmp_path / "tied.pth", weights_only=True), strict=True)
    assert (
        difference(model, read, reference) <= 4 * 3.8e-6
    )  # measured over 40 seeds: 3.8e-6, logits to 14
    reference.out_head.weight.data[3, 5] += 0.1
    assert difference(model, read, reference) > 1e-3


def test_a_model_with_another_eps_has_only_the_native_form(tmp_path):
    """The course's layer norm fixes eps, so a `.pth` would lose it silently."""
    cfg = replace(BIASED, ln_eps=1e-6)
    params = GPTModel(cfg).init(jax.random.key(0), jnp.asarray(IDS, jnp.int32))["params"]
    save_model(tmp_path / "own", cfg, params)
    assert load_model(tmp_path / "own")[0].cfg == cfg
    with pytest.raises(ValueError, match=r"layer norm has eps 1e-05, but this model's .* 1e-06"):
        save_course(tmp_path / "own.pth", cfg, params)
    assert not (tmp_path / "own.pth").exists()
    save_course(tmp_path / "own.pth", BIASED, params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_narrow_files_widen_exactly(tmp_path, dtype, kind):
    state = {name: x.to(dtype) for name, x in course_model().state_dict().items()}
    if dtype is torch.bfloat16:  # out of the range of float16
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


def test_a_torch_seed_is_a_model(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", CFG)
    checkpoint = read_checkpoint("torch-seed:123:tiny")
    torch.manual_seed(123)
    state = torch_reference.GPTModel(CFG.to_dict()).state_dict()
    assert (checkpoint.dialect, checkpoint.cfg) == ("torch-seed", CFG)
    assert [(row.source, row.target, row.shape, row.dtype) for row in checkpoint.audit] == [
        (name, name, leaf.shape, "float32") for name, leaf in leaves(checkpoint.params).items()
    ]
    assert {row.note for row in checkpoint.audit} == {"drawn as torch draws it"}
    for name, leaf in leaves(checkpoint.params).items():
        np.testing.assert_allclose(leaf, state[name].numpy(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="has n_heads=3, not 4"):
        read_checkpoint("torch-seed:123:tiny", n_heads=4)


@pytest.mark.parametrize(
    "source",
    ["", "x", "1.5", "1e3", "1:nope", "1:", "1:tiny:", " 1", "0x10", "--1", "9" * 5000, "9" * 20],
)
def test_a_malformed_seed_is_refused(source):
    with pytest.raises(ValueError, match=r"torch-seed:N|64-bit"):
        read_checkpoint(f"torch-seed:{source}")


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_wrong_destination_is_refused(tmp_path, course):
    model, params = load_model(course[0], n_heads=3)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full" / "model.safetensors").mkdir(parents=True)
    (tmp_path / "full" / "config.json").write_text("mine")
    before = contents(tmp_path)
    for save, name, words in (
        (save_model, "file", "is a file, but this form is a folder"),
        (save_model, "file/folder", "cannot be written: Not a directory"),
        (save_model, "course.pth", "is the name of a file, but this form is a folder"),
        (save_model, "new.safetensors", "is the name of a file, but this form is a folder"),
        (save_model, "full", r"model\.safetensors is a folder"),
        (save_model, "x" * 300, "cannot be written: File name too long"),
        (save_course, "full", "is a folder, but a course checkpoint is a file"),
        (save_course, "file", r"must end in \.pth or \.pt or"),
        (save_course, "new", r"must end in \.pth or \.pt or"),
        (save_course, "file/new.pth", "cannot be written: (Not a directory|File exists)"),
    ):
        with pytest.raises(ValueError, match=words):
            save(tmp_path / name, model.cfg, params)
    for save in (save_model, save_course):
        with pytest.raises(ValueError, match="the destination is empty"):
            save("", model.cfg, params)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("save", [save_model, save_course])
def test_wrong_parameters_leave_no_files(tmp_path, save):
    with pytest.raises(ValueError, match="missing tensors"):
        save(tmp_path / "new" / "x.pth", BIASED, {})
    with pytest.raises(ValueError, match="the config lacks"):
        save(tmp_path / "new" / "x.pth", {"vocab_size": 17}, {})
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys
from pathlib import Path
from obscura_jax.interop.checkpoint import (
    load_model, save_course, save_hf, save_model, save_nanogpt)
model, params = load_model(sys.argv[1])
params["out_head"] = params["tok_emb"]
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))  # like a disk that is full after 5000 bytes
for save, path in zip((save_model, save_course, save_hf, save_nanogpt), sys.argv[2:]):
    try:
        save(path, model.cfg, params)
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path, native, course):
    other = course_model(seed=2).state_dict()
    torch.save(other, tmp_path / "other.pth")
    model, params = load_model(tmp_path / "other.pth", n_heads=3)
    save_model(tmp_path / "other", model.cfg, params)
    before = contents(tmp_path)
    words = [FULL_DISK, tmp_path / "other", native, course[0], native, course[0]]
    done = processes.run(sys.executable, "-c", *words)
    assert done.returncode == 0, done.stderr
    lines = [f"{path} cannot be written: File too large" for path in (native, course[0])]
    assert done.stdout.splitlines() == lines * 2
    assert contents(tmp_path) == before


@pytest.mark.parametrize("size", [1, 10_000, 1_000_000])
def test_an_error_of_the_system_passes_through_torch(tmp_path, size):
    """For tensors smaller and larger than a write buffer."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("only Linux has a disk that is always full")
    with pytest.raises(OSError, match="No space left on device") as error:
        write_torch({"x": np.zeros(size, np.float32)}, full)
    assert error.value.errno == errno.ENOSPC
    write_torch({"x": np.zeros(size, np.float32)}, tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True)["x"].shape == (size,)


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


def test_written_files_have_the_usual_permissions(tmp_path, native):
    (tmp_path / "any").touch()
    model, params = load_model(native)
    save_course(tmp_path / "x.pth", model.cfg, params)
    modes = {
        stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "any", tmp_path / "x.pth", *native.iterdir())
    }
    assert len(modes) == 1


def test_the_metadata_has_the_format_that_torch_tools_expect(native):
    with safetensors.safe_open(native / "model.safetensors", "numpy") as file:
        assert file.metadata()["format"] == "pt"
