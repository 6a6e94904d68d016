"""Batches against windows, resuming at any place, and the worker threads."""

import gc
import json
import sys
import threading
import time
from dataclasses import FrozenInstanceError, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from obscura_jax.text import (
    BatchIterator,
    DataLoader,
    GPTDatasetV1,
    SimpleTokenizerV1,
    build_vocab,
    create_dataloader_v1,
    gpt2_tokenizer,
    sample_text,
    split_text,
)
from tests.support import processes
from tests.support.windows import LENGTH, STRIDE, N, dataset, lists

ROOT = Path(__file__).parents[1]
# --- batches -----------------------------------------------------------------------------------


def test_batches_in_order_are_the_windows_in_order() -> None:
    """The short batch comes last."""
    ds = dataset()
    batches = list(DataLoader(ds, 5, shuffle=False, drop_last=False))
    assert [len(inputs) for inputs, _ in batches] == [5] * 13 + [3]
    rows = [pair for batch in batches for pair in zip(*batch, strict=True)]
    assert lists(rows) == lists(ds)
    for inputs, targets in batches:
        assert inputs.dtype == targets.dtype == np.int32
        assert inputs.flags.c_contiguous
        assert targets.flags.c_contiguous


def test_a_shuffled_pass_holds_every_window_once() -> None:
    """In another order."""
    ds = dataset()
    rows = [
        pair for batch in DataLoader(ds, 5, drop_last=False) for pair in zip(*batch, strict=True)
    ]
    assert lists(rows) != lists(ds)
    assert sorted(lists(rows)) == sorted(lists(ds))


def test_a_pass_is_a_function_of_seed_and_number() -> None:
    """Repeating gives the same batches; another seed or number gives others."""
    loader = DataLoader(dataset(), 5, seed=3)
    first = lists(loader.epoch(0))
    assert lists(loader.epoch(0)) == first
    assert lists(loader) == lists(loader) == first
    assert lists(replace(loader).epoch(0)) == first
    assert lists(loader.epoch(1)) != first
    assert lists(replace(loader, seed=4).epoch(0)) != first
    assert lists(replace(loader, seed=0).epoch(3)) != lists(loader.epoch(0))


def test_a_part_of_every_batch_is_read_and_no_more() -> None:
    """The rows of two processes, together, are the batches; over the end of a pass too."""
    read: list[int] = []

    class Watched(GPTDatasetV1):
        def windows(self, indices: Any) -> Any:
            read.extend(np.asarray(indices).tolist())
            return super().windows(indices)

    ds = dataset()
    watched = Watched.from_ids(ds.token_ids, LENGTH, STRIDE)
    loader, whole = DataLoader(watched, 5, seed=3), DataLoader(ds, 5, seed=3)
    start, count = len(whole) - 2, 4
    batches = list(islice(whole.steps(start), count))
    for rows in ([0, 2], [1, 3, 4]):
        read.clear()
        parts = list(islice(loader.steps(start, rows), count))
        for part, batch in zip(parts, batches, strict=True):
            np.testing.assert_array_equal(part[0], batch[0][rows])
            np.testing.assert_array_equal(part[1], batch[1][rows])
        assert len(read) == count * len(rows)


def test_the_order_is_that_of_numpys_generator() -> None:
    """So that other programs can reproduce it."""
    ds = dataset()
    order = np.random.default_rng([3, 2]).permutation(len(ds))
    inputs, targets = next(DataLoader(ds, 5, seed=3).epoch(2))
    expected_inputs, expected_targets = ds.windows(order[:5])
    assert np.array_equal(inputs, expected_inputs)
    assert np.array_equal(targets, expected_targets)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 17, 68])
def test_len_counts_the_batches(batch_size: int, drop_last: bool) -> None:
    """With and without the short one."""
    loader = DataLoader(dataset(), batch_size, drop_last=drop_last)
    sizes = [len(inputs) for inputs, _ in loader]
    assert len(sizes) == len(loader)
    assert sum(sizes) == (68 - 68 % batch_size if drop_last else 68)
    assert set(sizes[:-1]) <= {batch_size}


def test_a_loader_that_would_be_empty_is_refused() -> None:
    """A silent loop over nothing would look like fast training."""
    with pytest.raises(ValueError, match=r"drop_last .* 68 windows, batch_size is 69"):
        DataLoader(dataset(), 69)
    assert len(DataLoader(dataset(), 69, drop_last=False)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("batch_size", 0), ("batch_size", 2.0), ("num_workers", -1), ("num_workers", None)),
        *(("seed", -1), ("seed", "x")),
    ],
)
def test_bad_fields_are_named(field: str, value: Any) -> None:
    """Too small or not whole numbers."""
    with pytest.raises(ValueError, match=f"{field} must be"):
        DataLoader(dataset(), **{field: value})


def test_the_loader_is_frozen() -> None:
    """Its fields stay as checked; a negative pass is refused too."""
    loader = DataLoader(dataset())
    with pytest.raises(FrozenInstanceError):
        loader.seed = 1  # type: ignore[misc]
    with pytest.raises(ValueError, match="epoch must be a whole number of at least 0"):
        loader.epoch(-1)


def test_create_dataloader_has_the_course_defaults() -> None:
    """Four windows of 256 tokens, half overlapping, by GPT-2's tokenizer."""
    loader = create_dataloader_v1(sample_text())
    ids = gpt2_tokenizer().encode(sample_text())
    assert loader.dataset.token_ids.tolist() == ids
    assert len(loader.dataset) == len(range(0, len(ids) - 256, 128))
    shape = (loader.batch_size, loader.dataset.max_length, loader.dataset.stride)
    assert shape == (4, 256, 128)
    assert (loader.shuffle, loader.drop_last, loader.num_workers, loader.seed) == (True, True, 0, 0)
    inputs, targets = next(loader.epoch(0))
    assert inputs.shape == targets.shape == (4, 256)


def test_create_dataloader_passes_everything_on() -> None:
    """No argument is lost or swapped."""
    tokenizer = SimpleTokenizerV1(build_vocab(split_text(sample_text())))
    loader = create_dataloader_v1(
        sample_text(), 3, 11, 5, False, False, 2, seed=9, tokenizer=tokenizer
    )
    ids = tokenizer.encode(sample_text())
    assert loader.dataset.token_ids.tolist() == ids
    assert ids != gpt2_tokenizer().encode(sample_text())
    expected = DataLoader(GPTDatasetV1.from_ids(ids, 11, 5), 3, False, False, 2, 9)
    assert replace(loader, dataset=expected.dataset) == expected
    assert lists(loader) == lists(expected)


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 3])
@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (False, True)])
def test_resuming_anywhere_gives_the_rest_of_the_stream(
    workers: int, shuffle: bool, drop_last: bool
) -> None:
    """Also at the start and the end, after a round trip through JSON."""
    loader = DataLoader(dataset(), 9, shuffle, drop_last, workers, seed=5)
    whole = lists(loader.epoch(2))
    other = lists(loader.epoch(3))
    for done in range(len(loader) + 1):
        with loader.epoch(2) as iterator:
            head = [next(iterator) for _ in range(done)]
            state = json.loads(json.dumps(iterator.state()))
        assert (state["epoch"], state["batch"]) == (2, done)
        rest = lists(loader.restore(state))
        assert lists(head) + rest == whole
        if shuffle and rest:
            assert lists(head) + rest != other


def test_a_state_fits_any_number_of_workers() -> None:
    """Workers change who prepares a batch, not which it is."""
    plain = DataLoader(dataset(), 9)
    threaded = replace(plain, num_workers=3)
    iterator = threaded.epoch(0)
    next(iterator)
    assert lists(plain.restore(iterator.state())) == lists(iterator)


def test_a_restored_iterator_reports_its_place() -> None:
    """Its state is the one that it was made from."""
    loader = DataLoader(dataset(), 9)
    state = loader.epoch(4).state()
    assert loader.restore(state).state() == state
    iterator = loader.restore(state)
    next(iterator)
    assert iterator.state() == {**state, "batch": 1}


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("seed", DataLoader(dataset(), 9, seed=1)),
        ("shuffle", DataLoader(dataset(), 9, shuffle=False)),
        ("drop_last", DataLoader(dataset(), 9, drop_last=False)),
        ("batch_size", DataLoader(dataset(), 8)),
        ("windows", DataLoader(dataset(n=N + STRIDE), 9)),
        ("max_length", DataLoader(dataset(length=LENGTH + 1), 9)),
        ("stride", DataLoader(dataset(length=144, stride=1), 9)),
        ("checksum", DataLoader(GPTDatasetV1.from_ids([0] * N, LENGTH, STRIDE), 9)),
    ],
)
def test_a_state_of_another_loader_is_refused(field: str, other: DataLoader) -> None:
    """Each field by itself is enough, and is named."""
    loader = DataLoader(dataset(), 9)
    state = loader.epoch(0).state()
    loader.restore(state)
    # Whatever else differs between the two, this field alone must be enough.
    wrong = {**state, field: other.epoch(0).state()[field]}
    with pytest.raises(ValueError, match=f"state is of another loader: its {field} is"):
        loader.restore(wrong)
    with pytest.raises(ValueError, match="state is of another loader"):
        other.restore(state)


def test_a_broken_state_is_refused() -> None:
    """A missing field or an impossible position."""
    loader = DataLoader(dataset(), 9)
    state = loader.epoch(0).state()
    for field in state:
        with pytest.raises(ValueError, match=f"the state has no '{field}'"):
            loader.restore({key: value for key, value in state.items() if key != field})
    for field, value, words in [
        ("batch", len(loader) + 1, f"batch must be at most {len(loader)}, got {len(loader) + 1}"),
        ("batch", -1, "batch must be a whole number of at least 0"),
        ("epoch", -1, "epoch must be a whole number of at least 0"),
        ("epoch", "now", "epoch must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=words):
            loader.restore({**state, field: value})


# --- worker threads ----------------------------------------------------------------------------


class Recording(GPTDatasetV1):
    """Notes which thread gathers; its threads meet, wait at a gate, and fail where they should."""

    meeting: threading.Barrier | None = None
    gate: threading.Event | None = None
    fail_at: int | None = None

    def windows(self, indices: Any) -> Any:
        """Note the thread, wait for others, fail if told to."""
        self.__dict__.setdefault("threads", []).append(threading.get_ident())
        if self.meeting is not None and len(self.threads) <= self.meeting.parties:
            self.meeting.wait()
        if self.gate is not None and 0 not in indices:
            self.gate.wait()
        if self.fail_at in indices:
            raise RuntimeError(f"window {self.fail_at} is broken")
        return super().windows(indices)


def recording(fail_at: int | None = None) -> Any:
    """The same windows as `dataset()`."""
    ds = Recording.from_ids(dataset().token_ids, LENGTH, STRIDE)
    ds.fail_at = fail_at
    return ds


def workers_alive() -> int:
    """Count the worker threads of all iterators."""
    return sum(thread.name.startswith("obscura-batches") for thread in threading.enumerate())


def wait_for_the_end_of_the_workers() -> None:
    """Return once they have all ended."""
    while workers_alive():
        time.sleep(0.005)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [1, 3, 20])
def test_workers_change_nothing_but_the_thread(workers: int, shuffle: bool) -> None:
    """Same batches, same order, each made once, none by the caller."""
    plain = recording()
    expected = lists(DataLoader(plain, 5, shuffle, False))
    assert set(plain.threads) == {threading.get_ident()}
    threaded = recording()
    threaded.meeting = threading.Barrier(min(workers, 2))  # of different threads
    loader = DataLoader(threaded, 5, shuffle, False, workers)
    assert lists(loader) == expected
    assert threading.get_ident() not in threaded.threads
    assert len(threaded.threads) == len(loader)
    assert min(workers, 2) <= len(set(threaded.threads)) <= workers


def test_prefetch_is_bounded_and_not_counted() -> None:
    """At most two batches per worker ahead, which the state does not count."""
    ds = recording()
    loader = DataLoader(ds, 2, num_workers=3)
    iterator = loader.epoch(0)
    assert workers_alive() == 0
    for done in range(1, 4):
        next(iterator)
        assert iterator.state()["batch"] == done
        ahead = 2 * 3 - 1
        while len(ds.threads) < done + ahead:
            time.sleep(0.005)
        time.sleep(0.02)  # in which a worker that is not bounded would go on
        assert len(ds.threads) == done + ahead < len(loader)
    iterator.close()


def test_threads_end_with_the_last_batch() -> None:
    """Without waiting for the StopIteration."""
    loader = DataLoader(dataset(), 9, num_workers=3)
    iterator = loader.epoch(0)
    for _ in range(len(loader) - 1):
        next(iterator)
    assert workers_alive() > 0
    next(iterator)
    assert workers_alive() == 0
    with pytest.raises(StopIteration):
        next(iterator)


def test_threads_end_at_close() -> None:
    """At once; the position survives, and closing twice does no harm."""
    with DataLoader(recording(), 2, num_workers=3).epoch(0) as iterator:
        next(iterator)
        assert workers_alive() > 0
    assert workers_alive() == 0
    assert list(iterator) == []
    assert iterator.state()["batch"] == 1
    iterator.close()


def test_threads_end_when_the_iterator_is_dropped() -> None:
    """What waited in the queue is cancelled."""
    ds = recording()
    ds.gate = threading.Event()
    iterator = DataLoader(ds, 2, shuffle=False, num_workers=2).epoch(0)
    next(iterator)  # four batches were asked for: one is here, two are held up, one waits
    assert workers_alive() == 2
    del iterator
    gc.collect()
    ds.gate.set()
    wait_for_the_end_of_the_workers()
    assert len(ds.threads) <= 3


def test_a_broken_loop_leaves_no_threads() -> None:
    """A `break` drops the iterator."""
    for _ in DataLoader(dataset(), 2, num_workers=3):
        break
    wait_for_the_end_of_the_workers()


@pytest.mark.parametrize("workers", [0, 3])
def test_an_error_comes_where_its_batch_is_due(workers: int) -> None:
    """Not earlier, and the stream can be taken up again at that batch."""
    loader = DataLoader(recording(fail_at=23), 5, shuffle=False, num_workers=workers)
    with loader.epoch(0) as iterator:
        got = [next(iterator) for _ in range(4)]
        for _ in range(2):
            with pytest.raises(RuntimeError, match="window 23 is broken"):
                next(iterator)
            assert iterator.state()["batch"] == 4
    healthy = replace(loader, dataset=dataset(), num_workers=0)
    assert lists(got) == lists(healthy)[:4]
    assert lists(healthy.restore(iterator.state())) == lists(healthy)[4:]
    wait_for_the_end_of_the_workers()


def test_the_interpreter_ends_with_a_pass_half_done() -> None:
    """No hang and no complaint."""
    script = """
        import time
        from obscura_jax.text import DataLoader, GPTDatasetV1
        class Slow(GPTDatasetV1):
            def windows(self, indices):
                time.sleep(0.05)
                return super().windows(indices)
        iterator = DataLoader(Slow.from_ids(range(10_000), 4, 1), num_workers=3).epoch(0)
        next(iterator)
        print("half done")
    """
    words = ["-W", "error", "-c", "if True:" + script]
    done = processes.run(sys.executable, *words, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout, done.stderr) == (0, "half done\n", "")


def test_iter_returns_the_iterator_itself() -> None:
    """As the protocol of iterators wants."""
    iterator = DataLoader(dataset()).epoch(0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
