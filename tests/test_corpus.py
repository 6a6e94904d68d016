"""Text files to token files: any piece size, any kill, the tokens of the whole text."""

import contextlib
import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from obscura_jax import gpt2_tokenizer
from obscura_jax.text import corpus, sample_text
from obscura_jax.text.corpus import finished_token_count, tokenize_to_file, train_token_count
from obscura_jax.text.dataset import GPTDatasetV1
from obscura_jax.text.encoding import encode_beginning, encode_ordinary
from obscura_jax.text.loader import DataLoader
from obscura_jax.text.token_file import TokenFile
from obscura_jax.text.token_journal import TOKEN_DTYPE, Journal

AWKWARD = (
    "\ufeffIt's  1,000 km!\n\n\n  \u00a0Größe \u2003 x\r\n\r\n\x1c!\x1c 日本語 的  🙂🙂\t\tend  \n "
)


def encoded(*texts):
    tokenizer = gpt2_tokenizer()
    return [i for text in texts for i in [*tokenizer.encode_ordinary(text), tokenizer.eot_token]]


def read(path):
    return np.fromfile(path, TOKEN_DTYPE).tolist()


@pytest.mark.parametrize("piece", [40, 41, 60, 64, 70, 99, 1 << 20])
def test_pieces_have_the_tokens_of_the_full_text(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(corpus, "_PIECE", piece)
    (tmp_path / "a").write_text(AWKWARD, encoding="utf-8")
    (tmp_path / "b").write_text(sample_text()[:1000], encoding="utf-8")
    out, seen = tmp_path / "out", []
    count = tokenize_to_file(
        [tmp_path / "a", tmp_path / "b"], out, progress=lambda *at: seen.append(at)
    )
    want = encoded(AWKWARD[1:], sample_text()[:1000])
    assert read(out) == want
    assert count == finished_token_count(out) == len(want)
    total = sum((tmp_path / name).stat().st_size for name in "ab")
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    stream = io.BytesIO((tmp_path / "b").read_bytes())
    tokenize_to_file(stream, tmp_path / "stream")
    assert read(tmp_path / "stream") == encoded(sample_text()[:1000])


@pytest.mark.parametrize("piece", [60, 70])
def test_a_cut_anywhere_else_has_other_tokens(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(corpus, "_PIECE", piece)
    monkeypatch.setattr(
        corpus, "encode_beginning", lambda bpe, text: (encode_ordinary(bpe, text), text)
    )
    (tmp_path / "a").write_text(AWKWARD, encoding="utf-8")
    tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    assert read(tmp_path / "out") != encoded(AWKWARD[1:])


NO_SPACE = "".join(map(chr, range(0x4E00, 0x5200))) + "abcdefghij" * 300 + "'ll" * 200
KINDS = {
    "words": sample_text()[:4000],
    "no white space": NO_SPACE,
    "mostly white space": "x" + " \n" * 2000 + "y" + "\u3000" * 500 + "z",
    "lines of CRLF": "one\r\n\r\ntwo\u200b\r\n" * 99,
    "blank at first": " " * 2000 + "x",
    "invisible": "\u200b\u200d\u2060" * 200,
}


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_bounded_and_have_the_tokens_of_the_full_text(tmp_path, monkeypatch, kind):
    """However it is written: no read asks for more than a piece, and none is longer."""
    monkeypatch.setattr(corpus, "_PIECE", 700)
    sizes = []

    def beginning(bpe, text):
        sizes.append(len(text.encode()))
        return encode_beginning(bpe, text)

    monkeypatch.setattr(corpus, "encode_beginning", beginning)
    (tmp_path / "a").write_bytes(KINDS[kind].encode())
    tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    assert read(tmp_path / "out") == encoded(KINDS[kind])
    assert 695 < max(sizes) <= 700


def test_the_work_is_proportional_to_the_text(tmp_path, monkeypatch):
    """Bytes encoded for a text of one long word, which is cut into windows with half in common."""
    monkeypatch.setattr(corpus, "_PIECE", 1000)
    work = []

    def beginning(bpe, text):
        work.append(len(text))
        return encode_beginning(bpe, text)

    monkeypatch.setattr(corpus, "encode_beginning", beginning)
    for count in (1, 2, 4):
        work.clear()
        (tmp_path / "a").write_bytes(b"abcdefghij" * 1000 * count)
        tokenize_to_file([tmp_path / "a"], tmp_path / f"out{count}")
        assert 1.5 < sum(work) / (10_000 * count) < 2.1


def test_a_stream_that_returns_few_bytes_at_a_time_gives_the_same_text(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 700)

    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 3))

    tokenize_to_file(Slow(AWKWARD.encode() * 40), tmp_path / "out")
    assert read(tmp_path / "out") == encoded((AWKWARD * 40)[1:])


@pytest.mark.parametrize("kill_at", range(0, 31, 3))
def test_a_killed_run_resumes_reading(tmp_path, monkeypatch, kill_at):
    """Whichever write of the journal was the last, and tokens beyond it are on the disk already."""
    monkeypatch.setattr(corpus, "_PIECE", 40)
    texts = [tmp_path / "a", tmp_path / "b"]
    for path, text in zip(texts, (AWKWARD, sample_text()[:1000]), strict=True):
        path.write_text(text, encoding="utf-8")
    write, writes = Journal.write, []

    def dies(self, path):
        writes.append(path)
        if len(writes) > kill_at:
            raise KeyboardInterrupt
        write(self, path)

    monkeypatch.setattr(Journal, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        tokenize_to_file(texts, tmp_path / "out")
    assert finished_token_count(tmp_path / "out") is None
    monkeypatch.setattr(Journal, "write", write)
    pieces = []
    tokenize_to_file(texts, tmp_path / "out", progress=lambda done, _: pieces.append(done))
    assert read(tmp_path / "out") == encoded(AWKWARD[1:], sample_text()[:1000])
    assert len(pieces) == 0 or pieces[0] > 30 * (kill_at - 4)  # it did not begin again


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_after_every_piece_reads_the_same_pieces(tmp_path, monkeypatch, kind):
    """Even where a cut depends on the size of a window: it begins where the last piece ended."""
    monkeypatch.setattr(corpus, "_PIECE", 90)
    (tmp_path / "a").write_bytes(KINDS[kind].encode())

    def ends(out, killed):
        found = []

        def progress(at, _):
            found.append(at)
            if killed:
                raise KeyboardInterrupt

        for _ in range(200):
            with contextlib.suppress(KeyboardInterrupt):
                tokenize_to_file([tmp_path / "a"], out, progress=progress)
                return found
        raise AssertionError("no end after 200 pieces")

    straight = ends(tmp_path / "straight", killed=False)
    assert ends(tmp_path / "killed", killed=True) == straight
    assert len(straight) > 10
    assert read(tmp_path / "killed") == read(tmp_path / "straight")


@pytest.mark.parametrize("text", [" ", "\n", " \u3000\r\n" * 99, " " * 1_300_000, "\ufeff \n"])
def test_white_space_is_text(tmp_path, text):
    (tmp_path / "a").write_bytes(text.encode())
    tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    ids = read(tmp_path / "out")
    assert ids[-1] == 50256
    assert gpt2_tokenizer().decode(ids[:-1]) == text.removeprefix("\ufeff")


@pytest.mark.slow
def test_megabytes_without_white_space_have_the_ids_of_tiktoken(tmp_path):
    """With the true size of a piece: three windows, and the cuts are inside words."""
    random = np.random.default_rng(0)
    runs = ["etaoinshrdlu", "日本語的一是", "=-_", "0123456789", "'s", "ÃÂ"]
    text = "".join(
        "".join(random.choice(list(run), 200_000 // len(run[0].encode()))) for run in runs * 2
    )
    (tmp_path / "a").write_bytes(text.encode())
    pieces = []
    tokenize_to_file([tmp_path / "a"], tmp_path / "out", progress=lambda at, _: pieces.append(at))
    assert read(tmp_path / "out") == encoded(text)
    assert len(pieces) == 3
    cut = len(text.encode()[: pieces[0]].decode())
    assert encoded(text[: cut + 1], text[cut + 1 :]) != encoded(text)  # control: one further


@pytest.mark.parametrize("vocab_size", [257, 300, 50257, 50304, 10**6])
def test_a_padded_vocabulary_has_the_ids_of_gpt2(tmp_path, vocab_size):
    (tmp_path / "a").write_text(sample_text())
    tokenize_to_file([tmp_path / "a"], tmp_path / "out", vocab_size=vocab_size)
    tokenizer = gpt2_tokenizer(min(vocab_size, 50257))
    want = [*tokenizer.encode_ordinary(sample_text()), tokenizer.eot_token]
    assert read(tmp_path / "out") == want


def test_text_needs_257_tokens(tmp_path):
    (tmp_path / "a").write_text("words")
    message = "at least 257 tokens, got 256; raise --vocab-size, or pass files .* with --data"
    with pytest.raises(ValueError, match=message):
        tokenize_to_file([tmp_path / "a"], tmp_path / "out", vocab_size=256)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_named_and_the_text_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_PIECE", 40)
    (tmp_path / "a").write_text(AWKWARD[1:], encoding="utf-8")
    sync, calls = os.fsync, []

    def full(number):
        calls.append(number)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="out cannot be written: No space left on device"):
        tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "out", "out.json"]
    pieces = []
    tokenize_to_file([tmp_path / "a"], tmp_path / "out", progress=lambda at, _: pieces.append(at))
    assert pieces[0] > 40  # not from the beginning
    assert read(tmp_path / "out") == encoded(AWKWARD[1:])


def test_a_text_of_three_bytes_is_not_a_byte_order_mark(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    def dies(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenize_to_file([tmp_path / "a"], tmp_path / "out", progress=dies)
    tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    assert read(tmp_path / "out") == encoded("abc")


@pytest.mark.parametrize("change", ["grows", "shrinks", "is rewritten"])
def test_a_text_that_changes_is_refused(tmp_path, monkeypatch, change):
    """While it is read, and between a kill and the next call."""
    monkeypatch.setattr(corpus, "_PIECE", 40)
    text, old = tmp_path / "a", b"some words " * 90
    new = {"grows": old + b"more", "shrinks": old[:500], "is rewritten": old.replace(b"so", b"to")}
    begun = []

    def changes(*_):
        if not begun:
            before = text.stat().st_mtime_ns
            text.write_bytes(new[change])
            os.utime(text, ns=(before, before + 10**9))
            begun.append(True)

    text.write_bytes(old)
    with pytest.raises(ValueError, match="a changed while it was read; start again in a new fo"):
        tokenize_to_file([text], tmp_path / "out", progress=changes)
    with pytest.raises(ValueError, match="or a text has changed; start again in a new folder"):
        tokenize_to_file([text], tmp_path / "out")


def test_sources_that_are_not_text_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no text at"):
        tokenize_to_file([tmp_path / "missing"], tmp_path / "out")
    with pytest.raises(ValueError, match="is a folder; name the text files in it"):
        tokenize_to_file([tmp_path], tmp_path / "out")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a file; send its text to standard input"):
        tokenize_to_file([tmp_path / "pipe"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["open", "read"])
def test_a_text_that_cannot_be_read(tmp_path, monkeypatch, method):
    """An error of the operating system, at the start or later, in one line."""
    (tmp_path / "a").write_text("words")

    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    def failing(name, mode="r", **options):
        if Path(name) != tmp_path / "a":
            return open(name, mode, **options)
        if method == "open":
            raise PermissionError(13, "Permission denied")
        return Failing()

    monkeypatch.setattr(corpus, "open", failing, raising=False)
    reason = {"open": "Permission denied", "read": "Input/output error"}[method]
    with pytest.raises(ValueError, match=f"a cannot be read: {reason}$"):
        tokenize_to_file([tmp_path / "a"], tmp_path / "out")


SOUND = asdict(Journal([["a", 1, 1]], 50257, text=1, tokens=2, done=True))
DAMAGED = {
    "nothing": b"",
    "an empty object": b"{}",
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "cut off": json.dumps(SOUND).encode()[:-9],
    "not UTF-8": b"\xff\xfe{}",
    "zeros": bytes(99),
    "deep": b"[" * 100_000,
    **{
        f"{name} is {value!r}": json.dumps({**SOUND, name: value}).encode()
        for name, value in [
            *(("tokens", v) for v in ("2", 2.0, -1, None, True, [])),
            *(("done", v) for v in (1, "true", None)),
            *(("text", v) for v in (2, -1, "0", False)),
            *(("offset", v) for v in (-1, 1.5, {})),
            *(("texts", v) for v in (None, 3, "a", {})),
            *(("vocab_size", v) for v in ("50257", None, True)),
        ]
    },
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_journal_is_named_with_the_remedy(tmp_path, damage):
    out, journal = tmp_path / "tokens.bin", tmp_path / "tokens.bin.json"
    (tmp_path / "a").write_text("x")
    np.zeros(2, TOKEN_DTYPE).tofile(out)
    journal.write_text(json.dumps(SOUND))
    assert finished_token_count(out) == 2  # control
    journal.write_bytes(DAMAGED[damage])
    message = (
        r"tokens\.bin\.json is damaged; delete .*tokens\.bin\.json and .*tokens\.bin to read the"
    )
    for call in (finished_token_count, lambda path: tokenize_to_file([tmp_path / "a"], path)):
        with pytest.raises(ValueError, match=message) as error:
            call(out)
        assert "\n" not in str(error.value)
    assert out.stat().st_size == 4
    assert journal.read_bytes() == DAMAGED[damage]


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (None, r"tokens\.bin is missing, but tokens\.bin\.json is not; delete .* to read the text"),
        (0, r"tokens\.bin has 0 bytes, but 4 according to tokens\.bin\.json; delete"),
        (3, "has 3 bytes, but 4 according"),
        (6, "has 6 bytes, but 4 according"),
    ],
)
def test_a_token_file_of_another_size_is_refused(tmp_path, size, message):
    out = tmp_path / "tokens.bin"
    if size is not None:
        out.write_bytes(bytes(size))
    (tmp_path / "tokens.bin.json").write_text(json.dumps(SOUND))
    with pytest.raises(ValueError, match=message):
        finished_token_count(out)
    (tmp_path / "tokens.bin.json").write_text(json.dumps({**SOUND, "tokens": 10**30}))
    with pytest.raises(ValueError, match=r"is missing|bytes, but 2\d{30} according"):
        finished_token_count(out)


def test_after_the_remedy_the_text_is_read_again(tmp_path):
    out, journal = tmp_path / "tokens.bin", tmp_path / "tokens.bin.json"
    (tmp_path / "a").write_text("some words")
    tokenize_to_file([tmp_path / "a"], out)
    before = out.read_bytes()
    journal.write_text("{}")
    out.unlink()
    journal.unlink()
    tokenize_to_file([tmp_path / "a"], out)
    assert out.read_bytes() == before


def test_other_texts_are_not_mixed_in(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name * 9)
    tokenize_to_file([tmp_path / "a"], tmp_path / "out")
    with pytest.raises(ValueError, match="begun with other texts"):
        tokenize_to_file([tmp_path / "b"], tmp_path / "out")


@pytest.mark.parametrize("piece", [13, 20, 1 << 20])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("Größe".encode("utf-16"), "is UTF-16 or UTF-32 text; convert it to UTF-8"),
        ("Größe".encode("utf-16-be"), "byte 0 is 0x00; convert it to UTF-8, or pass token ids"),
        ("\ufeffGröße".encode("utf-16-be"), "is UTF-16 or UTF-32 text; convert it to UTF-8"),
        ("Größe".encode("utf-32"), "is UTF-16 or UTF-32 text; convert it to UTF-8"),
        (b"\xed\xa0\x80 a surrogate", "byte 0 is 0xed"),
        ("Größe ".encode() * 9 + b"\xff bad", "byte 72 is 0xff"),
        ("Größe ".encode() * 9 + b"\xc3", "byte 72 is 0xc3"),
        ("Größe ".encode() * 9 + b"\0\xff", "byte 72 is 0x00"),
    ],
)
def test_the_position_of_invalid_bytes_is_named(tmp_path, monkeypatch, piece, data, message):
    monkeypatch.setattr(corpus, "_PIECE", piece)
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        tokenize_to_file([tmp_path / "a"], tmp_path / "out")


def test_validation_tokens_are_the_last():
    assert train_token_count(100, 0.2, 7) == 80
    assert train_token_count(100, 0.001, 7) == 92
    assert train_token_count(16, 0.5, 7) == 8
    with pytest.raises(ValueError, match="the text has 15 tokens"):
        train_token_count(15, 0.5, 7)


@pytest.mark.parametrize(("first", "last"), [(0, None), (5, 61), (17, 100)])
@pytest.mark.parametrize("stride", [1, 3, 7])
def test_a_token_file_equals_the_dataset_of_its_tokens(tmp_path, first, last, stride):
    ids = np.random.default_rng(0).integers(0, 60000, 100).astype(TOKEN_DTYPE)
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


def test_bad_token_files_are_refused(tmp_path):
    path = tmp_path / "t.bin"
    with pytest.raises(FileNotFoundError, match="no tokens at"):
        TokenFile(path, 7, 7)
    path.write_bytes(b"abc")
    with pytest.raises(
        ValueError, match="it has 3 bytes, an odd number; write the token ids again"
    ):
        TokenFile(path, 7, 7)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="has 0 tokens here, a window needs"):
        TokenFile(path, 7, 7)
    with pytest.raises(FileNotFoundError, match=r"no tokens at .*: it is not a file"):
        TokenFile(tmp_path, 7, 7)
    np.arange(7, dtype=TOKEN_DTYPE).tofile(path)
    with pytest.raises(ValueError, match=r"has 7 tokens here, a window needs .*; give more tokens"):
        TokenFile(path, 7, 7)
    for first, last in [(-1, 7), (0, 8), (5, 3)]:
        with pytest.raises(ValueError, match=f"has 7 tokens, not the range {first}..{last}"):
            TokenFile(path, 1, 1, first=first, last=last)
    with pytest.raises(ValueError, match=r"has token 6, outside the vocabulary, 0\.\.5; raise"):
        TokenFile(path, 3, 3, vocab_size=6)
    assert len(TokenFile(path, 3, 3, vocab_size=7)) == 2


def test_the_journal_records_completion(tmp_path):
    assert finished_token_count(tmp_path / "out") is None
    tokenize_to_file(io.BytesIO(b"ab"), tmp_path / "out")
    assert json.loads((tmp_path / "out.json").read_text())["done"] is True
