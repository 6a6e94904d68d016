"""The training loop: steps are dispatched ahead, and their metrics are read one step later."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel
from obscura_jax.runs.fit import Callbacks, Schedule, fit, read_metrics
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.text.loader import DataLoader
from obscura_jax.training import loop
from obscura_jax.training.initial import gpt2_init
from obscura_jax.training.loop import DivergedError, dispatch_steps, train
from obscura_jax.training.optimizer import OptimizerConfig
from obscura_jax.training.placement import SINGLE_DEVICE
from obscura_jax.training.run import TrainRun
from obscura_jax.training.step import init_train_state, train_step_jit

CFG = GPTConfig(
    vocab_size=53,
    context_length=7,
    emb_dim=8,
    n_heads=2,
    n_layers=1,
    drop_rate=0.0,
    qkv_bias=True,
)
MODEL, OPTIMIZER = GPTModel(CFG), OptimizerConfig()
BAD_TOKEN = 52


def run_of(steps=6, bad_batch=None):
    """A run whose batches contain BAD_TOKEN in batch `bad_batch` only."""
    ids = np.random.default_rng(0).integers(0, BAD_TOKEN, 14 * steps + 1).astype(np.int32)
    if bad_batch is not None:
        ids[14 * bad_batch + 3] = BAD_TOKEN
    loader = DataLoader(GPTDatasetV1.from_ids(ids, 7, 7), 2, shuffle=False)
    assert len(loader) == steps
    return TrainRun(MODEL, OPTIMIZER, loader, steps)


def init_params():
    return gpt2_init(CFG, jax.random.key(0))


def bad_params():
    """Parameters that give NaN for inputs with BAD_TOKEN, and only for these."""
    params = init_params()
    weight = params["tok_emb"]["weight"]
    return {**params, "tok_emb": {"weight": weight.at[BAD_TOKEN].set(jnp.nan)}}


@pytest.mark.slow
def test_no_step_counts_after_one_that_diverged():
    run = run_of(bad_batch=2)
    state, reads = init_train_state(OPTIMIZER, bad_params()), []
    for after, read in dispatch_steps(run, state):
        reads.append(read)
        if len(reads) == 2:
            good = jax.tree.map(np.array, after)
    assert int(after.step) == 2
    jax.tree.map(np.testing.assert_array_equal, after, good)
    assert [reads[n]()["step"] for n in (0, 1)] == [0, 1]
    with pytest.raises(DivergedError, match=r"diverged at step 2 \(loss nan"):
        reads[2]()


def test_without_a_step_number_later_steps_count():
    """The control: the batch after the bad one is finite."""
    run = run_of(bad_batch=2)
    state = init_train_state(OPTIMIZER, bad_params())
    for batch, _ in zip(SINGLE_DEVICE.batches(run.loader), range(4), strict=False):
        state, metrics = train_step_jit(MODEL, OPTIMIZER, state, *batch)
    assert np.isfinite(metrics.loss)
    assert int(state.step) == 3


class Recording:
    """SINGLE_DEVICE, with a list of what happens."""

    def __init__(self):
        self.events = []

    def __getattr__(self, name):
        return getattr(SINGLE_DEVICE, name)

    def step(self, run, state, batch, step):
        self.events.append(f"dispatch {step}")
        return SINGLE_DEVICE.step(run, state, batch, step)


@pytest.mark.slow
def test_metrics_are_read_while_the_next_step_runs(tmp_path):
    """Except before the state is validated or saved, which the next step would donate."""
    run, placement = run_of(steps=6), Recording()

    def on_metrics(row):
        placement.events.append(f"{'val' if 'val_loss' in row else 'loss'} {row['step']}")

    callbacks = Callbacks(on_metrics=on_metrics)
    fit(run, tmp_path, init_params, run.loader, Schedule(3, 100), callbacks, placement)
    dispatched = [f"dispatch {n}" for n in range(6)]
    losses = [f"loss {n}" for n in range(6)]
    assert placement.events == [
        *(dispatched[0], dispatched[1], losses[0], dispatched[2], losses[1], losses[2], "val 2"),
        *(dispatched[3], dispatched[4], losses[3], dispatched[5], losses[4], losses[5], "val 5"),
    ]


def test_a_run_that_diverges_saves_the_last_good_state(tmp_path):
    run = run_of(bad_batch=4)
    with pytest.raises(DivergedError, match="at step 4"):
        fit(run, tmp_path, bad_params, run.loader, Schedule(save_every=3))
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "4"]
    with pytest.raises(DivergedError, match="at step 4"):  # again, from the saved state
        fit(run, tmp_path, bad_params, run.loader)


def test_fit_and_train_take_the_same_steps(tmp_path):
    run = run_of()
    states = [(state, row) for state, row in train(run, init_train_state(OPTIMIZER, init_params()))]
    end = fit(run, tmp_path, init_params, run.loader, Schedule(validate_every=2, save_every=4))
    jax.tree.map(np.testing.assert_array_equal, end, states[-1][0])
    rows = [row for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row]
    assert [row["loss"] for row in rows] == [row["loss"] for _, row in states]


def test_a_stop_request_saves_the_step_that_runs(tmp_path):
    run, asked = run_of(), []
    callbacks = Callbacks(should_stop=lambda: asked.append(0) or len(asked) == 3)
    end = fit(run, tmp_path, init_params, run.loader, callbacks=callbacks)
    assert int(end.step) == 3
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 2]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["3"]


def test_tokens_per_second_counts_each_second_once(monkeypatch):
    """Two steps dispatched at 0 and 1 s, and read at 5 and 8 s, took 5 and 3 s."""
    times = iter([0.0, 1.0, 5.0, 8.0])
    states = dispatch_steps(run_of(), init_train_state(OPTIMIZER, init_params()))
    monkeypatch.setattr(loop.time, "perf_counter", lambda: next(times))
    reads = [next(states)[1] for _ in range(2)]
    assert [read()["tokens_per_second"] for read in reads] == [14 / 5, 14 / 3]


@pytest.mark.parametrize(
    ("field", "value"),
    [("validate_every", 0), ("save_every", 1.5), ("max_to_keep", 0), ("max_seconds", 0)],
)
def test_bad_schedules_are_named(field, value):
    with pytest.raises(ValueError, match=field):
        Schedule(**{field: value})
