"""Batches compared with windows, resuming at any place, and errors."""

import json
from dataclasses import FrozenInstanceError, replace
from itertools import islice
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
from tests.support.windows import LENGTH, STRIDE, N, dataset, lists

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


def test_only_the_requested_rows_of_a_batch_are_read() -> None:
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
    batches = list(islice(whole.batches_from(start), count))
    for rows in ([0, 2], [1, 3, 4]):
        read.clear()
        parts = list(islice(loader.batches_from(start, rows), count))
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
        *(("batch_size", 0), ("batch_size", 2.0), ("seed", -1), ("seed", "x")),
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
    assert (loader.shuffle, loader.drop_last, loader.seed) == (True, True, 0)
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
    expected = DataLoader(GPTDatasetV1.from_ids(ids, 11, 5), 3, False, False, 9)
    assert replace(loader, dataset=expected.dataset) == expected
    assert lists(loader) == lists(expected)


# --- resuming ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shuffle", "drop_last"), [(True, False), (False, True)])
def test_resuming_anywhere_yields_the_remaining_batches(shuffle: bool, drop_last: bool) -> None:
    """Also at the start and the end, after a round trip through JSON."""
    loader = DataLoader(dataset(), 9, shuffle, drop_last, seed=5)
    whole = lists(loader.epoch(2))
    other = lists(loader.epoch(3))
    for done in range(len(loader) + 1):
        iterator = loader.epoch(2)
        head = [next(iterator) for _ in range(done)]
        state = json.loads(json.dumps(iterator.state()))
        assert (state["epoch"], state["batch"]) == (2, done)
        rest = lists(loader.restore(state))
        assert lists(head) + rest == whole
        if shuffle and rest:
            assert lists(head) + rest != other


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


# --- errors, and what the course's arguments mean -----------------------------------------------


class Broken(GPTDatasetV1):
    """Windows of which one cannot be read."""

    def windows(self, indices: Any) -> Any:
        if 23 in indices:
            raise RuntimeError("window 23 is broken")
        return super().windows(indices)


def test_an_error_is_raised_when_its_batch_is_requested() -> None:
    """Not earlier, again at the next request, and the stream can be resumed at that batch."""
    broken = Broken.from_ids(dataset().token_ids, LENGTH, STRIDE)
    loader = DataLoader(broken, 5, shuffle=False)
    iterator = loader.epoch(0)
    got = [next(iterator) for _ in range(4)]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="window 23 is broken"):
            next(iterator)
        assert iterator.state()["batch"] == 4
    healthy = replace(loader, dataset=dataset())
    assert lists(got) == lists(healthy)[:4]
    assert lists(healthy.restore(iterator.state())) == lists(healthy)[4:]


def test_num_workers_changes_nothing() -> None:
    """The course's argument is accepted, and its value is checked."""
    text, tokenizer = sample_text(), SimpleTokenizerV1(build_vocab(split_text(sample_text())))
    plain, other = (
        create_dataloader_v1(text, max_length=8, num_workers=n, tokenizer=tokenizer) for n in (0, 3)
    )
    assert lists(plain) == lists(other)
    for bad in (-1, None):
        with pytest.raises(ValueError, match="num_workers must be"):
            create_dataloader_v1(text, num_workers=bad, tokenizer=tokenizer)  # type: ignore[arg-type]


def test_iter_returns_the_iterator_itself() -> None:
    """As the protocol of iterators wants."""
    iterator = DataLoader(dataset()).epoch(0)
    assert isinstance(iterator, BatchIterator)
    assert iter(iterator) is iterator
