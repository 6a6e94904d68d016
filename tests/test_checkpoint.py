"""CheckpointManager: exact, whole or not there, of this run or refused."""

import resource
import sys
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from obscura_jax import GPTConfig
from obscura_jax.training.checkpoint import CheckpointManager
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.optimizer import OptimizerConfig
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


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    return all(
        x.dtype == y.dtype and np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def like():
    return jax.eval_shape(lambda: state_after(0))


def damage(folder, step, how):
    """Change the largest file of a checkpoint."""
    files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
    victim = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(victim.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    victim.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    if how == "gone":
        victim.unlink()


def test_what_is_saved_comes_back_and_the_last_are_kept(tmp_path):
    checkpoints = CheckpointManager(tmp_path / "c", RUN, keep=2)
    assert checkpoints.restore(like()) is None
    for step in (3, 5, 11):
        checkpoints.save(state_after(step))
    assert checkpoints.steps == [5, 11]
    found = CheckpointManager(tmp_path / "c", RUN).restore(like())
    assert equal(found, state_after(11))
    assert not equal(found, state_after(5))
    checkpoints.save(state_after(11))  # it is there already


@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_a_damaged_one_is_reported_and_the_one_before_is_used(tmp_path, how, capfd):
    checkpoints = CheckpointManager(tmp_path, RUN)
    for step in (3, 5):
        checkpoints.save(state_after(step))
    damage(tmp_path, 5, how)
    reason = r"\((its files cannot be read|.* has another checksum)\)"
    with pytest.warns(UserWarning, match=rf"of step 5 .* is damaged {reason}; that of step 3 is"):
        assert equal(checkpoints.restore(like()), state_after(3))
    assert checkpoints.steps == [3]
    checkpoints.save(state_after(5))  # the run comes to that step again
    assert equal(checkpoints.restore(like()), state_after(5))
    damage(tmp_path, 5, how)
    damage(tmp_path, 3, how)
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read: step 5 \(.*; restore"):
        checkpoints.restore(like())
    assert capfd.readouterr() == ("", "")  # orbax's own complaints are not shown


def test_a_run_with_the_dropout_of_an_earlier_version_is_refused(tmp_path):
    CheckpointManager(tmp_path, RUN).save(state_after(3))
    with pytest.raises(ValueError, match="was begun by an earlier version, which drops other"):
        CheckpointManager(tmp_path, {**RUN, "dropout": "keys folded by block"}).restore(like())


def test_another_run_is_refused_by_name(tmp_path):
    CheckpointManager(tmp_path, RUN).save(state_after(3))
    with pytest.raises(ValueError, match=r"its lr is 0\.1, here it is 0\.2"):
        CheckpointManager(tmp_path, {**RUN, "lr": 0.2}).restore(like())
    deeper = jax.eval_shape(lambda: state_after(0, replace(CFG, n_layers=3)))
    with pytest.raises(ValueError, match=r"another model .*trf_blocks\.2\..* is missing there"):
        CheckpointManager(tmp_path, RUN).restore(deeper)
    wider = jax.eval_shape(lambda: state_after(0, replace(CFG, vocab_size=54)))
    with pytest.raises(ValueError, match=r"tok_emb\.weight is \(\(53, 8\), 'float32'\) there"):
        CheckpointManager(tmp_path, RUN).restore(wider)


def test_what_a_killed_save_left_is_removed(tmp_path):
    CheckpointManager(tmp_path, RUN).save(state_after(3))
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    assert CheckpointManager(tmp_path, RUN).steps == [3]
    assert [path.name for path in tmp_path.iterdir()] == ["3"]


def test_a_full_disk_leaves_the_good_one(tmp_path, monkeypatch):
    """No file may grow beyond 4 KiB: the process meets EFBIG where a full disk gives ENOSPC."""
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: heard.append(unraisable))
    checkpoints = CheckpointManager(tmp_path, RUN)
    checkpoints.save(state_after(3))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(ValueError, match=r"of step 5 cannot be written .*step 3 is good"):
            checkpoints.save(state_after(5))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    # A write that ends late is not told of; what else goes wrong out of sight still is.
    late, other = (
        SimpleNamespace(exc_value=RuntimeError(x)) for x in ("Event loop is closed", "x")
    )
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert heard == [other]
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert equal(checkpoints.restore(like()), state_after(3))
    checkpoints.save(state_after(5))
    assert equal(checkpoints.restore(like()), state_after(5))
