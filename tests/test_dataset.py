"""Windows of a dataset, against the obvious loop."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax.text import (
    GPTDatasetV1,
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocab,
    gpt2_tokenizer,
    split_text,
)
from tests.support.windows import LENGTH, N, dataset, lists


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


def test_targets_are_the_inputs_shifted_by_one() -> None:
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
    with pytest.raises(ValueError, match="indices must be a 1-D list or array of integers"):
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
        ([1, 2, -1], r"ids must be in 0\.\.2147483647, got -1\.\.2"),
        ([1, 2, 2**31], r"ids must be in 0\.\.2147483647, got 1\.\.2147483648"),
        ([1, 2, 2**70], "ids must be a 1-D list or array of integers"),
        ([1.0, 2.0, 3.0], "ids must be a 1-D list or array of integers"),
        ([True, False, True], "ids must be a 1-D list or array of integers"),
        (["1", "2", "3"], "ids must be a 1-D list or array of integers"),
        ([[1, 2, 3]], "ids must be a 1-D list or array of integers"),
    ],
)
def test_bad_ids_are_refused(ids: Any, words: str) -> None:
    """Negative, beyond int32, not integers, not one row."""
    with pytest.raises(ValueError, match=words):
        GPTDatasetV1.from_ids(ids, 2, 1)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, ">i4", np.uint64])
def test_ids_of_any_integer_type_are_copied(dtype: Any) -> None:
    """Later changes to the caller's array have no effect."""
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


def test_a_read_only_view_of_writable_data_is_copied(tmp_path: Path) -> None:
    """Through the array that it is a view of, somebody could change the windows."""
    ids = np.arange(9, dtype=np.int32)
    ids.tofile(tmp_path / "ids")
    writeable_map = np.memmap(tmp_path / "ids", np.int32, "r+")
    buffer = bytearray(ids.tobytes())
    for owner in (ids, writeable_map, np.frombuffer(buffer, np.int32)):
        view = owner[:]
        view.flags.writeable = False
        ds = GPTDatasetV1.from_ids(view, 4, 1)
        owner[:] = 0
        assert not view.any()
        assert ds.token_ids.tolist() == list(range(9))


def test_immutable_data_is_not_copied() -> None:
    """An array that is read-only itself, a view of one, bytes."""
    ids = np.arange(9, dtype=np.int32)
    ids.flags.writeable = False
    for array in (ids, ids[2:], np.frombuffer(ids.tobytes(), np.int32)):
        assert np.shares_memory(GPTDatasetV1.from_ids(array, 4, 1).token_ids, array)


def test_texts_are_encoded_as_in_the_course() -> None:
    """tiktoken gets leave for the end of text, the word tokenizers need none."""
    text = "the cat <|endoftext|> the dog"
    gpt2 = GPTDatasetV1(text, gpt2_tokenizer(), 3, 1).token_ids.tolist()
    assert gpt2 == gpt2_tokenizer().encode(text, allowed_special={"<|endoftext|>"})
    assert 50256 in gpt2
    vocab = build_vocab(split_text("the cat dog"), ("<|endoftext|>", "<|unk|>"))
    for make in (SimpleTokenizerV1, SimpleTokenizerV2):
        assert GPTDatasetV1(text, make(vocab), 3, 1).token_ids.tolist() == [2, 0, 3, 2, 1]
