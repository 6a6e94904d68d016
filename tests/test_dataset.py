"""Windows against the obvious loop, batches against windows, resuming, and the worker threads."""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax.text import (
    BatchIterator,
    DataLoader,
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocab,
    create_dataloader_v1,
    gpt2_tokenizer,
    sample_text,
    split_text,
)

ROOT = Path(__file__).parents[1]
N, LENGTH, STRIDE = 211, 7, 3  # 68 windows


def dataset(n: int = N, length: int = LENGTH, stride: int = STRIDE) -> GPTDatasetV1:
    """68 windows over random ids."""
    ids = np.random.default_rng(1).integers(0, 50257, n)
    return GPTDatasetV1.from_ids(ids, length, stride)


def lists(batches: Any) -> list[tuple[Any, Any]]:
    """Return the batches as nested lists, which `==` compares."""
    return [(inputs.tolist(), targets.tolist()) for inputs, targets in batches]


# --- windows -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 2**31 - 1), min_size=2, max_size=40),
    st.integers(1, 12),
    st.integers(1, 15),
)
@settings(max_examples=80, deadline=None)
def test_windows_equal_the_obvious_loop(ids: list[int], length: int, stride: int) -> None:
    """One by one and gathered, for random sizes, overlapping and with gaps."""
    if len(ids) <= length:
        with pytest.raises(ValueError, match=f"has {len(ids)} tokens.* = {length + 1}"):
            GPTDatasetV1.from_ids(ids, length, stride)
        return
    expected = [
        (ids[start : start + length], ids[start + 1 : start + length + 1])
        for start in range(0, len(ids) - length, stride)
    ]
    ds = GPTDatasetV1.from_ids(ids, length, stride)
    assert len(ds) == len(expected)
    assert lists(ds) == expected
    inputs, targets = ds.windows(list(range(len(ds))))
    assert list(zip(inputs.tolist(), targets.tolist(), strict=True)) == expected


def test_targets_are_the_inputs_one_place_on() -> None:
    """Shapes and types are those promised."""
    inputs, targets = dataset()[5]
    assert inputs.shape == targets.shape == (LENGTH,)
    assert inputs.dtype == targets.dtype == np.int32
    assert np.array_equal(inputs[1:], targets[:-1])
    assert not np.array_equal(inputs, targets)


def test_windows_are_read_only_views_of_one_array() -> None:
    """A window costs no memory and nobody can change it; a gathered batch is a copy."""
    ds = dataset()
    assert ds.token_ids.dtype == np.int32
    assert ds.token_ids.nbytes == 4 * N
    for array in (ds.token_ids, *ds[4]):
        assert np.shares_memory(array, ds.token_ids)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    for array in ds.windows([4]):
        assert not np.shares_memory(array, ds.token_ids)


def test_batch_gather_returns_contiguous_copies() -> None:
    """Row by row the windows asked for, in the order asked for."""
    ds = dataset()
    inputs, targets = ds.windows(np.array([9, 0, -1], np.int8))
    for array, column in ((inputs, 0), (targets, 1)):
        assert array.shape == (3, LENGTH)
        assert array.dtype == np.int32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        for row, i in enumerate((9, 0, -1)):
            assert np.array_equal(array[row], ds[i][column])
    assert ds.windows([])[0].shape == (0, LENGTH)


def test_indices_behave_as_in_a_list() -> None:
    """Negative ones count from the end, those beyond are an IndexError."""
    ds = dataset()
    assert np.array_equal(ds[-1][0], ds[len(ds) - 1][0])
    assert not np.array_equal(ds[-1][0], ds[0][0])
    assert np.array_equal(ds[np.int64(3)][1], ds[3][1])
    for index in (len(ds), -len(ds) - 1):
        with pytest.raises(IndexError, match="out of bounds"):
            ds[index]
        with pytest.raises(IndexError, match="out of bounds"):
            ds.windows([0, index])
    with pytest.raises(TypeError):
        ds[1.0]  # type: ignore[index]
    with pytest.raises(ValueError, match="indices must be one row of integers"):
        ds.windows([1.0])  # type: ignore[list-item]


def test_a_short_text_is_refused_with_both_numbers() -> None:
    """One token more than max_length is the least that will do."""
    text = "one two three four five six seven eight nine ten eleven twelve"
    with pytest.raises(ValueError, match=r"has 12 tokens, a window needs max_length \+ 1 = 257"):
        GPTDatasetV1(text, gpt2_tokenizer(), 256, 128)
    with pytest.raises(ValueError, match=r"has 12 tokens, a window needs max_length \+ 1 = 13"):
        GPTDatasetV1(text, gpt2_tokenizer(), 12, 1)
    assert len(GPTDatasetV1(text, gpt2_tokenizer(), 11, 1)) == 1
    with pytest.raises(ValueError, match="has 0 tokens"):
        GPTDatasetV1("", gpt2_tokenizer(), 4, 1)


@pytest.mark.parametrize("field", ["max_length", "stride"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "4"])
def test_bad_window_sizes_are_named(field: str, value: Any) -> None:
    """Below 1 or not a whole number."""
    with pytest.raises(ValueError, match=f"{field} must be"):
        GPTDatasetV1.from_ids(range(99), **{"max_length": 4, "stride": 1, field: value})


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([1, 2, -1], r"ids must lie in 0\.\.2147483647, got -1\.\.2"),
        ([1, 2, 2**31], r"ids must lie in 0\.\.2147483647, got 1\.\.2147483648"),
        ([1, 2, 2**70], "ids must be one row of integers"),
        ([1.0, 2.0, 3.0], "ids must be one row of integers"),
        ([True, False, True], "ids must be one row of integers"),
        (["1", "2", "3"], "ids must be one row of integers"),
        ([[1, 2, 3]], "ids must be one row of integers"),
    ],
)
def test_bad_ids_are_refused(ids: Any, words: str) -> None:
    """Negative, beyond int32, not integers, not one row."""
    with pytest.raises(ValueError, match=words):
        GPTDatasetV1.from_ids(ids, 2, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, ">i4", np.uint64])
def test_ids_of_any_integer_type_are_copied(dtype: Any) -> None:
    """What the caller does to the array later changes nothing."""
    ids = np.arange(9, dtype=dtype)
    ds = GPTDatasetV1.from_ids(ids, 4, 1)
    ids[:] = 0
    assert ds.token_ids.tolist() == list(range(9))
    assert ds.token_ids.dtype == np.int32


def test_a_mapped_file_is_not_copied(tmp_path: Path) -> None:
    """Unless its ids do not lie side by side."""
    np.arange(50, dtype=np.int32).tofile(tmp_path / "ids")
    mapped = np.memmap(tmp_path / "ids", np.int32, "r")
    ds = GPTDatasetV1.from_ids(mapped, 4, 1)
    assert np.shares_memory(ds[3][0], mapped)
    every_second = GPTDatasetV1.from_ids(mapped[::2], 4, 1)
    assert every_second.token_ids.tolist() == list(range(0, 50, 2))
    assert every_second.checksum != ds.checksum


def test_texts_are_encoded_as_in_the_course() -> None:
    """tiktoken gets leave for the end of text, the word tokenizers need none."""
    text = "the cat <|endoftext|> the dog"
    gpt2 = GPTDatasetV1(text, gpt2_tokenizer(), 3, 1).token_ids.tolist()
    assert gpt2 == gpt2_tokenizer().encode(text, allowed_special={"<|endoftext|>"})
    assert 50256 in gpt2
    vocab = build_vocab(split_text("the cat dog"), ("<|endoftext|>", "<|unk|>"))
    for make in (SimpleTokenizerV1, SimpleTokenizerV2):
        assert GPTDatasetV1(text, make(vocab), 3, 1).token_ids.tolist() == [2, 0, 3, 2, 1]


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
    """Notes which thread gathers, takes its time, waits at a gate, fails where it is told to."""

    seconds = 0.0
    gate: threading.Event | None = None
    fail_at: int | None = None

    def windows(self, indices: Any) -> Any:
        """Note the thread, wait, fail if told to."""
        self.__dict__.setdefault("threads", []).append(threading.get_ident())
        time.sleep(self.seconds)
        if self.gate is not None and 0 not in indices:
            assert self.gate.wait(10)
        if self.fail_at in indices:
            raise RuntimeError(f"window {self.fail_at} is broken")
        return super().windows(indices)


def recording(seconds: float = 0.0, fail_at: int | None = None) -> Any:
    """The same windows as `dataset()`."""
    ds = Recording.from_ids(dataset().token_ids, LENGTH, STRIDE)
    ds.seconds, ds.fail_at = seconds, fail_at
    return ds


def workers_alive() -> int:
    """Count the worker threads of all iterators."""
    return sum(thread.name.startswith("obscura-batches") for thread in threading.enumerate())


def wait_for_the_end_of_the_workers() -> bool:
    """Tell whether they all end within ten seconds."""
    deadline = time.monotonic() + 10
    while workers_alive() and time.monotonic() < deadline:
        time.sleep(0.005)
    return workers_alive() == 0


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("workers", [1, 3, 20])
def test_workers_change_nothing_but_the_thread(workers: int, shuffle: bool) -> None:
    """Same batches, same order, each made once, none by the caller."""
    plain = recording()
    expected = lists(DataLoader(plain, 5, shuffle, False))
    assert set(plain.threads) == {threading.get_ident()}
    threaded = recording(seconds=0.01)
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
        deadline = time.monotonic() + 10
        while len(ds.threads) < done + ahead and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.02)
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
    with DataLoader(recording(seconds=0.02), 2, num_workers=3).epoch(0) as iterator:
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
    assert wait_for_the_end_of_the_workers()
    assert len(ds.threads) <= 3


def test_a_broken_loop_leaves_no_threads() -> None:
    """A `break` drops the iterator."""
    for _ in DataLoader(dataset(), 2, num_workers=3):
        break
    assert wait_for_the_end_of_the_workers()


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
    assert wait_for_the_end_of_the_workers()


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
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "if True:" + script],
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=30,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr) == ("half done\n", "")


def test_iter_returns_the_iterator_itself() -> None:
    """As the protocol of iterators wants."""
    iterator = DataLoader(dataset()).epoch(0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
