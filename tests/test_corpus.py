"""Text files to token files: any piece size, any kill, the tokens of the whole text."""

import io
import json

import numpy as np
import pytest

from obscura_jax import gpt2_tokenizer
from obscura_jax.text import corpus, sample_text
from obscura_jax.text.corpus import IDS, split_point, tokens_written, write_tokens
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.text.loader import DataLoader
from obscura_jax.text.token_file import TokenFile

AWKWARD = (
    "\ufeffIt's  1,000 km!\n\n\n  \u00a0Größe \u2003 x\r\n\r\n\x1c!\x1c 日本語 的  🙂🙂\t\tend  \n "
)


def encoded(*texts):
    tokenizer = gpt2_tokenizer()
    return [i for text in texts for i in [*tokenizer.encode_ordinary(text), tokenizer.eot_token]]


def read(path):
    return np.fromfile(path, IDS).tolist()


@pytest.mark.parametrize("piece", [1, 2, 7, 64, 1 << 22])
def test_pieces_have_the_tokens_of_the_whole(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(corpus, "_PIECE", piece)
    (tmp_path / "a").write_text(AWKWARD, encoding="utf-8")
    (tmp_path / "b").write_text(sample_text()[:1000], encoding="utf-8")
    out, seen = tmp_path / "out", []
    count = write_tokens(
        [tmp_path / "a", tmp_path / "b"], out, progress=lambda *at: seen.append(at)
    )
    want = encoded(AWKWARD[1:], sample_text()[:1000])
    assert read(out) == want
    assert count == tokens_written(out) == len(want)
    total = sum((tmp_path / name).stat().st_size for name in "ab")
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    stream = io.BytesIO((tmp_path / "b").read_bytes())
    write_tokens(stream, tmp_path / "stream")
    assert read(tmp_path / "stream") == encoded(sample_text()[:1000])


def test_a_cut_anywhere_else_has_other_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 7)
    monkeypatch.setattr(corpus, "_cut", len)
    (tmp_path / "a").write_text(AWKWARD, encoding="utf-8")
    write_tokens([tmp_path / "a"], tmp_path / "out")
    assert read(tmp_path / "out") != encoded(AWKWARD[1:])


@pytest.mark.parametrize("kill_at", range(0, 31, 3))
def test_a_killed_reading_goes_on(tmp_path, monkeypatch, kill_at):
    """Whichever write of the journal was the last, and tokens beyond it are on the disk already."""
    monkeypatch.setattr(corpus, "_PIECE", 40)
    texts = [tmp_path / "a", tmp_path / "b"]
    for path, text in zip(texts, (AWKWARD, sample_text()[:1000]), strict=True):
        path.write_text(text, encoding="utf-8")
    replace, writes = corpus._replace, []

    def dies(path, text):
        writes.append(text)
        if len(writes) > kill_at:
            raise KeyboardInterrupt
        replace(path, text)

    monkeypatch.setattr(corpus, "_replace", dies)
    with pytest.raises(KeyboardInterrupt):
        write_tokens(texts, tmp_path / "out")
    assert tokens_written(tmp_path / "out") is None
    monkeypatch.setattr(corpus, "_replace", replace)
    pieces = []
    write_tokens(texts, tmp_path / "out", progress=lambda done, _: pieces.append(done))
    assert read(tmp_path / "out") == encoded(AWKWARD[1:], sample_text()[:1000])
    assert len(pieces) == 0 or pieces[0] > 30 * (kill_at - 4)  # it did not begin again


def test_other_texts_are_not_mixed_in(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 9)
    write_tokens([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ValueError, match="begun with other texts"):
        write_tokens([tmp_path / "b"], tmp_path / "out")


@pytest.mark.parametrize("piece", [1, 5, 1 << 22])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        ("\ufeff \n".encode(), "is empty"),
        ("Größe ".encode() * 9 + b"\xff bad", "byte 72 is 0xff"),
        ("Größe ".encode() * 9 + b"\xc3", "byte 72 is 0xc3"),
        ("Größe ".encode() * 9 + b"\0", "byte 72 is a zero"),
    ],
)
def test_the_position_of_what_is_not_text(tmp_path, monkeypatch, piece, data, message):
    monkeypatch.setattr(corpus, "_PIECE", piece)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        write_tokens([tmp_path / "a"], tmp_path / "out")


def test_held_out_tokens_are_the_last():
    assert split_point(100, 0.2, 7) == 80
    assert split_point(100, 0.001, 7) == 92
    assert split_point(16, 0.5, 7) == 8
    with pytest.raises(ValueError, match="the text has 15 tokens"):
        split_point(15, 0.5, 7)


@pytest.mark.parametrize(("first", "last"), [(0, None), (5, 61), (17, 100)])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_a_token_file_is_the_dataset_of_its_tokens(tmp_path, first, last, stride):
    ids = np.random.default_rng(0).integers(0, 60000, 100).astype(IDS)
    ids.tofile(tmp_path / "t.bin")
    ours = TokenFile(tmp_path / "t.bin", 7, stride, first=first, last=last)
    want = GPTDatasetV1.from_ids(ids[first:last].astype(np.int32), 7, stride)
    assert len(ours) == len(want)
    for a, b in zip(ours.windows(range(len(ours))), want.windows(range(len(want))), strict=True):
        assert a.dtype == b.dtype == np.int32
        assert a.flags.c_contiguous
        assert a.tolist() == b.tolist()
    batches = [[a.tolist() for a, _ in DataLoader(data, 3, seed=1)] for data in (ours, want)]
    assert batches[0] == batches[1]
    other = TokenFile(tmp_path / "t.bin", 7, stride, first=first + 1, last=last)
    assert other.checksum != ours.checksum
    with pytest.raises(IndexError):
        ours.windows([len(ours)])


def test_bad_token_files(tmp_path):
    path = tmp_path / "t.bin"
    with pytest.raises(FileNotFoundError, match="no tokens at"):
        TokenFile(path, 7, 7)
    path.write_bytes(b"abc")
    with pytest.raises(ValueError, match="it has 3 bytes"):
        TokenFile(path, 7, 7)
    np.arange(7, dtype=IDS).tofile(path)
    with pytest.raises(ValueError, match="has 7 tokens here, a window needs"):
        TokenFile(path, 7, 7)
    with pytest.raises(ValueError, match=r"has token 6, outside the vocabulary, 0\.\.5"):
        TokenFile(path, 3, 3, vocab_size=6)
    assert len(TokenFile(path, 3, 3, vocab_size=7)) == 2


def test_the_journal_says_when_it_is_done(tmp_path):
    assert tokens_written(tmp_path / "out") is None
    write_tokens(io.BytesIO(b"ab"), tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["done"] is True
