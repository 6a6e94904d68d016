"""Text of any length and kind has tiktoken's ids, in one piece or cut."""

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax import create_dataloader_v1, gpt2_tokenizer
from obscura_jax.decoding.score import score
from obscura_jax.decoding.text import stream_text
from obscura_jax.interop.checkpoint import load_model
from obscura_jax.text import GPTDatasetV1, SimpleTokenizerV2, encoding
from obscura_jax.text.encoding import encode_beginning, encode_ordinary, encode_text

MILLION = " " * 1_000_000
WORDS = [
    *("a", "the", "INTERNATIONAL", "日本語", "Größe", "e\u0301\u0323", "7", "2024", "٣"),
    *("!", "...", "=====", "'", "''", "'s", "'ll", "'re", "l's", "“", "🙂", "👩‍💻", "\u200b", "\0"),
    *(" ", "   ", "\n", "\r\n", "\n\n\n", "\t", "\xa0", "\u3000 ", "\u2028", "\x1c", "\x85"),
    *("<|endoftext|>", "<|endof", "|>"),
]
TEXTS = st.lists(st.sampled_from(WORDS) | st.characters(exclude_categories=["Cs"])).map("".join)
ALPHABETS = [
    *("etaoinshrdlu", "日本語的一是", "=", "=-_", "🙂é", "0123456789", "'s", "''!", "ÃÂ", "ab'lr"),
]
ENCODINGS = st.sampled_from([257, 600, 5000, 50257]).map(gpt2_tokenizer)


def in_windows(tokenizer, text, size):
    """The ids of `text` as a reader has them that sees `size` characters."""
    ids = []
    while len(text) > size:
        found, done = encode_beginning(tokenizer, text[:size])
        ids, text = ids + found, text.removeprefix(done)
    return ids + encode_ordinary(tokenizer, text)


@given(TEXTS, ENCODINGS, st.integers(1, 9))
@settings(max_examples=300, derandomize=True, deadline=None)
def test_a_text_in_parts_has_the_ids_of_tiktoken(text, tokenizer, long):
    """Every run of white space that a multiple of `long` meets is cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_LONG", long)
        assert encode_text(tokenizer, text) == tokenizer.encode(text, allowed_special="all")
        assert encode_ordinary(tokenizer, text) == tokenizer.encode_ordinary(text)
        parts = list(encoding._parts(tokenizer, text, ()))
    assert "".join(parts) == text


def test_text_is_cut_before_white_space():
    """Control for the test before, which a function that never cuts would pass."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_LONG", 4)
        parts = list(encoding._parts(gpt2_tokenizer(), "a      b", ()))
        special = list(encoding._parts(gpt2_tokenizer(), "a      <|b", ["<|"]))
    assert parts == ["a     ", " b"]
    assert special == ["a      <|b"]  # white space before a special token is one word
    assert gpt2_tokenizer().encode("a      ") + gpt2_tokenizer().encode("b") != (
        gpt2_tokenizer().encode("a      b")
    )


@given(st.lists(TEXTS, min_size=1, max_size=3), ENCODINGS, st.integers(60, 400))
@settings(max_examples=200, derandomize=True, deadline=None)
def test_pieces_cut_at_white_space_have_the_ids_of_the_full_text(texts, tokenizer, size):
    """White space after another character in every window: exact, however short."""
    text = "".join(part[:25] + "x \n"[:2] for part in texts * 10)
    assert in_windows(tokenizer, text, size) == tokenizer.encode_ordinary(text)


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(ALPHABETS), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    ENCODINGS,
    st.booleans(),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_long_words_in_windows_have_the_ids_of_the_full_text(alphabets, random, tokenizer, spaces):
    """No white space to cut at: windows of 500 characters keep half of their ids."""
    words = ["".join(random.choices(a, k=random.randrange(300, 1500))) for a in alphabets]
    text = ("   \n\t \xa0" * 90 if spaces else "").join(words)
    assert in_windows(tokenizer, text, 500) == tokenizer.encode_ordinary(text)


@pytest.mark.parametrize("vocab_size", [300, 600, 50257])
@pytest.mark.parametrize("unit", ["!'s", "^'s", "a'll", "a'ser", "''re", "é've", "^''~'d", "1's"])
def test_windows_of_contractions_have_the_ids_of_the_full_text(unit, vocab_size):
    tokenizer, text = gpt2_tokenizer(vocab_size), unit * 400
    whole = tokenizer.encode_ordinary(text)
    for size in range(300, 312):
        assert in_windows(tokenizer, text, size) == whole


def test_a_merge_depends_on_few_others():
    """The longest chain of merges, each of which takes the right part of the next one away.

    A step leftward passes two tokens at most: the ids left out cover every chain.
    """
    ranks = gpt2_tokenizer()._mergeable_ranks
    right, longest = {}, dict.fromkeys(ranks, 0)  # the chains that begin with a token
    for token in sorted(ranks, key=ranks.__getitem__):
        if len(token) > 1:
            first, last = halves(ranks, token)
            right[token], inner = last, [last]
            while inner[-1] in right:
                inner.append(right[inner[-1]])
            longest[first] = max(longest[first], 1 + max(longest[part] for part in inner))
    assert max(longest.values()) == 258
    assert encoding._UNSETTLED > 2 * 258


def halves(ranks, token):
    """The two tokens that are merged into `token`."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        at = min(
            range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks))
        )
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def test_words_cut_in_the_middle_have_other_ids():
    """Control: to keep all ids of a window is wrong."""
    tokenizer, text = gpt2_tokenizer(), "international" * 99
    whole = tokenizer.encode_ordinary(text)
    halves = tokenizer.encode_ordinary(text[:500]) + tokenizer.encode_ordinary(text[500:])
    assert halves != whole == in_windows(tokenizer, text, 500)


@pytest.mark.parametrize(
    ("data", "at", "allowed"),
    [
        ("a's", 1, True),  # `a` and `'s`
        ("a's", 2, False),  # cuts the contraction
        ("a'll", 3, False),
        ("a'llx", 4, True),
        ("!'s", 1, False),  # `!'` and `s`; cut here, `'s` would be a contraction
        ("!'x", 1, True),
        ("é", 1, False),  # half a character
    ],
)
def test_no_contraction_is_cut_or_formed(data, at, allowed):
    assert encoding._may_cut(data.encode(), at) == allowed


@pytest.mark.slow
@pytest.mark.parametrize("character", [" ", "\n", "\u3000", "a", "日", "=", "'", "7"])
def test_a_million_equal_characters_have_ids(character):
    """tiktoken panics where this is white space; the two sides of the cut are within its reach."""
    tokenizer = gpt2_tokenizer()
    run = character * 1_000_000
    text = f"a{run}<|endoftext|>{run}?b"
    ids = encode_text(tokenizer, text)
    assert tokenizer.decode(ids) == text
    assert ids.count(50256) == 1
    first = tokenizer.encode(f"a{run}")
    if character.isspace():
        last = tokenizer.encode(run[1:]) + tokenizer.encode(character + "?b")
    else:
        last = tokenizer.encode(run + "?b")
    assert ids == [*first, 50256, *last]


def test_every_function_of_text_accepts_a_million_spaces():
    """The dataset, the loader, a score and a stream of text; the last two are too long instead."""
    text = f"one{MILLION}two"
    ids = encode_text(gpt2_tokenizer(), text)
    assert GPTDatasetV1(text, gpt2_tokenizer(), 4, 4).token_ids.tolist() == ids
    assert create_dataloader_v1(text, max_length=4, stride=4).dataset.token_ids.tolist() == ids
    model, params = load_model("tiny")
    with pytest.raises(ValueError, match="exceeds context_length"):
        score(model, params, [text], tokenizer=gpt2_tokenizer(4096))
    with pytest.raises(ValueError, match="context of 256"):
        stream_text(model, params, [text], gpt2_tokenizer(4096))


def test_lone_surrogates_are_replaced_as_tiktoken_does():
    text = "a\ud800 b" + " " * 9
    assert encode_text(gpt2_tokenizer(), text) == gpt2_tokenizer().encode(text)
    assert encode_text(gpt2_tokenizer(), text) == gpt2_tokenizer().encode("a\ufffd b" + " " * 9)


def test_other_patterns_are_not_cut():
    """The rules are GPT-2's: another pattern may put all white space into one word."""
    gpt2 = gpt2_tokenizer()
    other = tiktoken.Encoding(
        "spaces", pat_str=r"\s+|\S+", mergeable_ranks=gpt2._mergeable_ranks, special_tokens={}
    )
    text = "a" + "\n" * 8 + "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_LONG", 2)
        assert encode_text(other, text) == other.encode(text)
        assert encode_text(gpt2, text) == gpt2.encode(text) != other.encode(text)


def test_special_tokens_need_permission():
    with pytest.raises(ValueError, match="disallowed special token"):
        encode_text(gpt2_tokenizer(), "a<|endoftext|>", ())
    assert encode_text(gpt2_tokenizer(), "a<|endoftext|>", {"<|endoftext|>"}) == [64, 50256]
    assert len(encode_ordinary(gpt2_tokenizer(), "a<|endoftext|>")) == 8
    words = SimpleTokenizerV2({"a": 0, "<|endoftext|>": 1, "<|unk|>": 2})
    assert encode_text(words, "a<|endoftext|> b") == [0, 1, 2]


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


class Broken:
    """A tokenizer whose `encode` fails."""

    def __init__(self, error):
        self.error = error

    def encode(self, text):
        raise self.error

    def decode(self, ids, /):
        return ""


@pytest.mark.parametrize("error", [Panic("called `unwrap`"), Exception("no such token")])
def test_an_error_of_native_code_is_a_value_error(error):
    with pytest.raises(ValueError, match=f"the tokenizer cannot encode this text: {error}"):
        GPTDatasetV1("text", Broken(error), 1, 1)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), KeyError("word")])
def test_other_errors_are_unchanged(error):
    with pytest.raises(type(error)):
        encode_text(Broken(error), "text")
