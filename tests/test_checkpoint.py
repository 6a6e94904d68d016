"""CheckpointManager: exact, complete or absent, of this run or refused."""

import json
import resource
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from obscura_jax import GPTConfig
from obscura_jax.nn.parameters import named_leaves
from obscura_jax.safetensors_files import read_safetensors
from obscura_jax.training.checkpoint import FORMAT, CheckpointManager
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.placement import SINGLE_DEVICE, SingleDevice
from obscura_jax.training.shards import StoredArrays, local_parts
from obscura_jax.training.step import init_train_state

CFG = GPTConfig(
    vocab_size=53,
    context_length=7,
    emb_dim=8,
    n_heads=2,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
    tie_weights=True,
)
RUN = {"lr": 0.1, "sizes": [1, 2]}


def state_after(step, cfg=CFG):
    config = OptimizerConfig(clip_norm=1.0)
    state = init_train_state(config, gpt2_init(cfg, jax.random.key(step)))
    return replace(state, step=state.step + step)


def manager(folder, fingerprint=RUN, cfg=CFG, placement=SINGLE_DEVICE, max_to_keep=2):
    run = SimpleNamespace(
        fingerprint=lambda: fingerprint,
        abstract_state=lambda: jax.eval_shape(lambda: state_after(0, cfg)),
    )
    return CheckpointManager(folder, run, placement, max_to_keep)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def damage(folder, step, how, name="process-0.safetensors"):
    """Change a file of a checkpoint."""
    victim = folder / str(step) / name
    data = bytearray(victim.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    victim.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    if how == "gone":
        victim.unlink()


def test_a_saved_state_is_restored_and_the_newest_are_kept(tmp_path):
    checkpoints = manager(tmp_path / "c")
    assert checkpoints.restore() is None
    for step in (3, 5, 11):
        checkpoints.save(state_after(step))
    assert checkpoints.steps == [5, 11]
    found = manager(tmp_path / "c").restore()
    assert equal(found, state_after(11))
    assert not equal(found, state_after(5))


def test_a_step_is_saved_once(tmp_path):
    checkpoints = manager(tmp_path)
    checkpoints.save(state_after(3))
    inode = (tmp_path / "3" / "index.json").stat().st_ino
    checkpoints.save(state_after(3))
    resumed = manager(tmp_path)
    resumed.save(resumed.restore())
    assert (tmp_path / "3" / "index.json").stat().st_ino == inode


@pytest.mark.parametrize(("saved", "restored"), [(True, False), (False, True), (True, True)])
def test_stacked_blocks_are_stored_as_separate_blocks(saved, restored, tmp_path):
    saving, restoring = SingleDevice(scan=saved), SingleDevice(scan=restored)
    manager(tmp_path, placement=saving).save(saving.place(state_after(3)))
    names = read_safetensors(tmp_path / "3" / "process-0.safetensors").keys()
    assert names == named_leaves(state_after(3)).keys()
    found = manager(tmp_path, placement=restoring).restore()
    assert equal(found, restoring.place(state_after(3)))
    assert equal(restoring.gather(found), jax.device_get(state_after(3)))


@pytest.mark.parametrize("name", ["process-0.safetensors", "index.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(how, name, tmp_path, capfd):
    checkpoints = manager(tmp_path)
    for step in (3, 5):
        checkpoints.save(state_after(step))
    damage(tmp_path, 5, how, name)
    reason = rf"\({name} is missing or damaged\)"
    with pytest.warns(UserWarning, match=rf"of step 5 .* is damaged {reason}; that of step 3 is"):
        assert equal(checkpoints.restore(), state_after(3))
    assert checkpoints.steps == [3]
    assert (tmp_path / "5.damaged").is_dir()
    checkpoints.save(state_after(5))  # the run comes to that step again
    assert equal(checkpoints.restore(), state_after(5))
    damage(tmp_path, 5, how, name)
    damage(tmp_path, 3, how, name)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: step 5 \(.*; restore"):
        checkpoints.restore()
    assert capfd.readouterr() == ("", "")


def test_every_byte_of_the_data_is_verified(tmp_path):
    checkpoints = manager(tmp_path)
    checkpoints.save(state_after(3))
    path = tmp_path / "3" / "process-0.safetensors"
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    for place in np.random.default_rng(0).integers(start, len(good), 50):
        bad = bytearray(good)
        bad[place] ^= 1 << int(place) % 8
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="step 3"):
            checkpoints.restore()
    path.write_bytes(good)
    assert equal(checkpoints.restore(), state_after(3))


def test_a_checkpoint_of_an_earlier_version_is_refused_by_name(tmp_path):
    (tmp_path / "3" / "state").mkdir(parents=True)
    (tmp_path / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    message = r"3 was written by obscura_jax 0\.1\.0, .*; resume with that version, or train again"
    with pytest.raises(ValueError, match=message):
        manager(tmp_path).restore()


def test_a_checkpoint_of_a_later_version_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr("obscura_jax.training.checkpoint.FORMAT", FORMAT + 1)
    monkeypatch.setattr("obscura_jax.training.checkpoint.__version__", "9.8.7")
    manager(tmp_path).save(state_after(3))
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"3 was written by obscura_jax 9\.8\.7, whose"):
        manager(tmp_path).restore()


def test_another_run_is_refused_by_name(tmp_path):
    manager(tmp_path).save(state_after(3))
    with pytest.raises(ValueError, match=r"its lr is 0\.1, here it is 0\.2"):
        manager(tmp_path, {**RUN, "lr": 0.2}).restore()
    with pytest.raises(ValueError, match=r"another model .*trf_blocks\.2\..* is missing there"):
        manager(tmp_path, cfg=replace(CFG, n_layers=3)).restore()
    with pytest.raises(ValueError, match=r"tok_emb\.weight is float32\[53,8\] there"):
        manager(tmp_path, cfg=replace(CFG, vocab_size=54)).restore()


@pytest.mark.parametrize("left", ["5.tmp", "5.orbax-checkpoint-tmp"])
def test_files_of_a_killed_save_are_removed(left, tmp_path):
    manager(tmp_path).save(state_after(3))
    (tmp_path / left).mkdir()
    assert manager(tmp_path).steps == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_full_disk_leaves_the_good_checkpoint(tmp_path, capfd):
    """No file may grow beyond 4 KiB: the process meets EFBIG where a full disk gives ENOSPC."""
    checkpoints = manager(tmp_path)
    checkpoints.save(state_after(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ValueError, match=r"of step 5 cannot be written .*step 3 is good"):
            checkpoints.save(state_after(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert equal(checkpoints.restore(), state_after(3))
    checkpoints.save(state_after(5))
    assert equal(checkpoints.restore(), state_after(5))


class OneOfTwo:
    """A placement in a process that is not the writer, with the numbers of another process."""

    is_writer = False

    def __init__(self, *numbers):
        self.numbers = iter(numbers)

    def max_over_processes(self, number):
        return max(number, next(self.numbers))


def test_processes_that_see_different_folders_are_told(tmp_path):
    manager(tmp_path).save(state_after(3))
    here = manager(tmp_path, placement=OneOfTwo(5, -5))
    with pytest.raises(ValueError, match="different steps, 3 and 5; give all the same run folder"):
        here.restore()


def test_damage_that_another_process_sees_counts(tmp_path):
    manager(tmp_path).save(state_after(3))
    here = manager(tmp_path, placement=OneOfTwo(3, -3, 1, -1, 1))
    with pytest.raises(ValueError, match=r"step 3 \(another process cannot read it\)"):
        here.restore()


def test_a_failure_in_another_process_fails_everywhere(tmp_path):
    here = manager(tmp_path, placement=OneOfTwo(1))
    with pytest.raises(ValueError, match=r"step 3 cannot be written .*\(another process failed\)"):
        here.save(state_after(3))
    assert here.steps == []


def test_missing_parts_are_noticed():
    shapes = named_leaves(jax.eval_shape(lambda: state_after(0)))
    parts = local_parts(state_after(3), shapes)
    StoredArrays([parts], shapes)
    victim = parts.pop("params.pos_emb.weight")
    with pytest.raises(ValueError, match=r"parts of params\.pos_emb\.weight are missing"):
        StoredArrays([parts], shapes)
    with pytest.raises(ValueError, match="is not one of its arrays"):
        StoredArrays([parts, {"params.pos_embed.weight": victim}], shapes)
    halves = {"params.pos_emb.weight@0,0": victim[:3], "params.pos_emb.weight@3,0": victim[3:]}
    found = StoredArrays([parts, halves], shapes)
    placement = SingleDevice()
    assert equal(found.as_state(placement.abstract(state_after(0))), state_after(3))


def test_the_index_describes_the_checkpoint(tmp_path):
    manager(tmp_path).save(state_after(3))
    index = json.loads((tmp_path / "3" / "index.json").read_text())
    assert index["run"] == RUN
    assert index["files"] == ["process-0.safetensors"]
    assert index["arrays"]["params.tok_emb.weight"] == "float32[53,8]"
