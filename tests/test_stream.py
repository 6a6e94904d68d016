"""Streams: what `generate` gives, piece by piece, and never a piece too early."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax import GPTConfig, GPTModel, generate
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.stream import TextStream, decode_until_stop, stream, stream_text
from obscura_jax.rng.torch_generator import torch_seed_init
from obscura_jax.text.tokenizers import gpt2_tokenizer

CFG = GPTConfig(
    vocab_size=61,
    context_length=67,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
)
MODEL = GPTModel(CFG)
PARAMS = torch_seed_init(CFG, 123)
SAMPLED = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "key": jax.random.key(5)}
SPEAKING = GPTConfig(50257, 64, 8, 2, 1, 0.1, False)
TOKENIZER = gpt2_tokenizer()
ROWS = [np.random.default_rng(n).integers(0, 61, n).tolist() for n in (5, 17, 2)]


def joined(chunks):
    """The rows of all chunks put together."""
    return [[token for ids in row for token in ids] for row in zip(*chunks, strict=True)]


# Tokens.


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_adds_up_to_what_generate_gives(options):
    free = generate(MODEL, PARAMS, ROWS, 30, **options).tokens
    stops = [[free[0][4]], [], [free[2][11], free[2][20]]]
    ended = generate(MODEL, PARAMS, ROWS, 30, stop_ids=stops, **options).tokens
    assert ended != free
    before = DEFAULT_PROGRAMS.compiled()
    for tokens_per_chunk in (1, 3, 100):
        assert (
            joined(stream(MODEL, PARAMS, ROWS, 30, tokens_per_chunk=tokens_per_chunk, **options))
            == free
        )
        chunks = list(
            stream(
                MODEL,
                PARAMS,
                ROWS,
                30,
                tokens_per_chunk=tokens_per_chunk,
                stop_ids=stops,
                **options,
            )
        )
        assert joined(chunks) == ended
        sizes = [len(ids[1]) for ids in chunks]  # the row that never stops
        assert sizes[0] == 1
        assert all(size == tokens_per_chunk for size in sizes[1:-1])
        assert sum(sizes) == 30
    assert DEFAULT_PROGRAMS.compiled() == before
    other = [[(token + 1) % 61 for token in row] for row in ROWS]
    assert joined(stream(MODEL, PARAMS, other, 30, **options)) != free


def test_a_stream_slides():
    expected = generate(MODEL, PARAMS, ROWS, 70, sliding_window=True).tokens
    assert (
        joined(stream(MODEL, PARAMS, ROWS, 70, tokens_per_chunk=9, sliding_window=True)) == expected
    )


def test_a_stream_fits_in_the_context_by_default():
    long = [[1] * 40, [2]]
    assert [len(row) for row in joined(stream(MODEL, PARAMS, long))] == [27, 27]
    assert joined(stream(MODEL, PARAMS, long)) == joined(stream(MODEL, PARAMS, long, 27))
    assert len(joined(stream(MODEL, PARAMS, [[2]]))[0]) == 64
    with pytest.raises(ValueError, match="fills the context of 67 tokens"):
        stream(MODEL, PARAMS, [[1] * 67])
    assert len(joined(stream(MODEL, PARAMS, [[1] * 67], sliding_window=True))[0]) == 64


def test_a_stream_ends_with_its_last_row():
    free = generate(MODEL, PARAMS, ROWS, 30).tokens
    stops = [[row[3]] for row in free]
    chunks = list(stream(MODEL, PARAMS, ROWS, 30, tokens_per_chunk=2, stop_ids=stops))
    assert len(chunks) <= 3
    assert joined(chunks) == [row[: row.index(row[3])] for row in free]


def test_a_stream_is_computed_as_it_is_read():
    chunks = stream(MODEL, PARAMS, ROWS, 30, tokens_per_chunk=1)
    first = next(chunks)
    assert [len(ids) for ids in first] == [1, 1, 1]
    assert next(chunks) != []
    chunks.close()


@pytest.mark.parametrize(
    ("prompts", "new", "options", "message"),
    [
        (
            ROWS,
            5,
            {"tokens_per_chunk": 0},
            "tokens_per_chunk must be a whole number of at least 1, got 0",
        ),
        (ROWS, 5, {"tokens_per_chunk": 1.5}, "tokens_per_chunk must be a whole number"),
        ([], 5, {}, "the batch is empty"),
        ([[1], []], 5, {}, "prompt 1: the prompt is empty"),
        ([[61]], 5, {}, "prompt 0: .*outside the vocabulary"),
        (ROWS, 0, {}, "max_new_tokens must be"),
        (ROWS, 60, {}, "17 prompt tokens . 60 new tokens exceed the context of 67 tokens"),
        (ROWS, 5, {"temperature": -1}, "temperature must be"),
        (ROWS, 5, {"temperature": 1.0}, "needs a key"),
        (ROWS, 5, {"top_k": [1, 2]}, "top_k lists 2 values for 3 rows"),
        (ROWS, 5, {"stop_ids": [61]}, "stop_ids: "),
    ],
)
def test_what_generate_refuses_is_refused_at_the_call(prompts, new, options, message):
    with pytest.raises(ValueError, match=message):
        stream(MODEL, PARAMS, prompts, new, **options)
    if "tokens_per_chunk" not in options:
        with pytest.raises(ValueError, match=message):
            generate(MODEL, PARAMS, prompts, new, **options)


def test_damaged_weights_end_the_stream():
    damaged = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    chunks = stream(MODEL, damaged, ROWS, 5)
    with pytest.raises(ValueError, match="logits are NaN or infinite: its weights are damaged"):
        next(chunks)


# Text.

WORDS = "naïve 世界 👩‍👩‍👧 🏳️‍🌈 e\u0301 Hello, world\n"
IDS = TOKENIZER.encode(WORDS)


def cut_at_first(text: str, stop) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def pieces_of(ids, splits, stop=()):
    """What a stream gives for `ids` fed in parts that begin at `splits`."""
    text = TextStream(TOKENIZER, stop)
    edges = sorted({0, *(n % (len(ids) + 1) for n in splits), len(ids)})
    pieces = [text.feed(ids[a:b]) for a, b in pairwise(edges)]
    return [*pieces, text.finish()], text


# Single bytes (ids below 256) break characters in every way; the pieces of WORDS mend some.
ANY_IDS = st.lists(st.integers(0, 255) | st.integers(0, 50256) | st.sampled_from(IDS), max_size=24)
SPLITS = st.lists(st.integers(0, 99), max_size=8)


@settings(max_examples=200, deadline=None)
@given(ids=ANY_IDS, splits=SPLITS)
def test_the_pieces_add_up_to_the_tokenizers_text(ids, splits):
    pieces, text = pieces_of(ids, splits)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert not text.stopped
    assert text.finish() == ""


@settings(max_examples=200, deadline=None)
@given(
    ids=st.lists(st.sampled_from([64, 65, 66, 187, 222]), max_size=16),  # a, b, c, two bytes
    splits=SPLITS,
    stop=st.lists(st.text("abc\ufffd", min_size=1, max_size=4), max_size=3),
)
def test_the_text_ends_before_the_stop_string_that_begins_first(ids, splits, stop):
    whole = TOKENIZER.decode(ids)
    pieces, text = pieces_of(ids, splits, stop)
    assert "".join(pieces) == cut_at_first(whole, stop)
    assert text.stopped == any(s in whole for s in stop)
    shown, taken, stopped = decode_until_stop(TOKENIZER, ids, stop)
    assert (shown, stopped) == ("".join(pieces), text.stopped)
    assert cut_at_first(TOKENIZER.decode(ids[:taken]), stop) == shown


def test_no_character_is_broken():
    for n in range(len(IDS)):
        pieces, _ = pieces_of(IDS, [n])
        assert "\ufffd" not in "".join(pieces)
    naive = "".join(TOKENIZER.decode([n]) for n in IDS)  # what a stream must not do
    assert "\ufffd" in naive
    text = TextStream(TOKENIZER)
    pieces = [text.feed([n]) for n in IDS]
    assert "".join(pieces) == WORDS  # nothing waits for the end
    assert "" in pieces  # but parts of characters waited


def test_stop_strings_at_every_split():
    ids = TOKENIZER.encode("One two, three; four.")
    for stop in (["two, th"], [", three"], ["e"], ["four.", "wo,"], ["three; fours"]):
        expected = cut_at_first("One two, three; four.", stop)
        for n in range(len(ids) + 1):
            assert "".join(pieces_of(ids, [n], stop)[0]) == expected
        assert "".join(pieces_of(ids, range(99), stop)[0]) == expected
    # Each token alone holds no stop string: only the text they make together does.
    assert not any(", three" in TOKENIZER.decode([n]) for n in ids)


def test_text_waits_while_it_may_become_a_stop_string_and_no_longer():
    text = TextStream(TOKENIZER, ["END"])
    assert text.feed(TOKENIZER.encode("x E")) == "x "
    assert text.feed(TOKENIZER.encode("N")) == ""
    assert text.feed(TOKENIZER.encode("E")) == "EN"
    assert text.feed(TOKENIZER.encode("ND and more")) == ""
    assert text.stopped
    assert text.feed(TOKENIZER.encode("more")) == text.finish() == ""
    rest = TextStream(TOKENIZER, ["END"])
    assert rest.feed(TOKENIZER.encode("EN")) == ""
    assert (rest.finish(), rest.stopped) == ("EN", False)


def test_a_longer_stop_string_that_began_before_wins():
    for end, expected, stopped in (("c", "x", True), ("d", "xa", True)):
        text = TextStream(TOKENIZER, ["abc", "b"])
        pieces = [text.feed(TOKENIZER.encode(letter)) for letter in ("x", "a", "b", end)]
        assert pieces[:3] == ["x", "", ""]
        assert ("".join(pieces), text.stopped) == (expected, stopped)


def test_what_a_text_stream_refuses():
    for stop in ([""], ["a", ""], "word"):
        with pytest.raises(ValueError, match="stop must be a list of strings that are not empty"):
            TextStream(TOKENIZER, stop)


# Text to text.

SPEAKER = GPTModel(SPEAKING)
SPOKEN = torch_seed_init(SPEAKING, 7)
PROMPTS = ["Hello, I am", "naïve → 世界", "<|endoftext|>"]
ENCODED = [TOKENIZER.encode(prompt, allowed_special="all") for prompt in PROMPTS]


def said(pieces):
    return ["".join(row) for row in zip(*pieces, strict=True)]


def test_streamed_text_is_the_text_of_the_tokens():
    expected = [TOKENIZER.decode(ids) for ids in generate(SPEAKER, SPOKEN, ENCODED, 20).tokens]
    for tokens_per_chunk in (1, 6):
        pieces = list(
            stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, tokens_per_chunk=tokens_per_chunk)
        )
        assert said(pieces) == expected
    sampled = {"temperature": 0.8, "key": jax.random.key(3)}
    drawn = generate(SPEAKER, SPOKEN, ENCODED, 20, **sampled).tokens
    pieces = stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, **sampled)
    assert said(pieces) == [TOKENIZER.decode(ids) for ids in drawn] != expected


def test_streamed_text_fits_in_the_context_by_default():
    count = SPEAKING.context_length - max(map(len, ENCODED))
    expected = [TOKENIZER.decode(ids) for ids in generate(SPEAKER, SPOKEN, ENCODED, count).tokens]
    assert said(stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER)) == expected
    assert count < SPEAKING.context_length - len(ENCODED[-1])


def test_streamed_text_ends_with_the_last_row():
    ids = generate(SPEAKER, SPOKEN, ENCODED, 20).tokens
    texts = [TOKENIZER.decode(row) for row in ids]
    stop = [text[2:9] for text in texts]  # across tokens, early in every row
    pieces = list(
        stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, tokens_per_chunk=1, stop=stop)
    )
    assert said(pieces) == [cut_at_first(text, stop) for text in texts] != texts
    assert len(pieces) < 19
    # A row that a stop id ends gives what it held back, though its neighbours go on.
    last = TOKENIZER.decode(ids[0][:3])
    options = {
        "stop_ids": [[ids[0][3]], [], []],
        "stop": [last[-1] + "\x00"],
        "tokens_per_chunk": 1,
    }
    pieces = list(stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, **options))
    assert said(pieces[:5])[0] == last
    assert len(pieces) >= 20


def test_text_errors_come_at_the_call():
    for prompts, options, message in (
        (["a", ""], {}, "prompt 1: the prompt is empty"),
        (["a"], {"stop": [""]}, "stop must be a list"),
        (["a"], {"tokens_per_chunk": 0}, "tokens_per_chunk must be"),
        (["a"], {"max_new_tokens": 64}, "exceed the context of 64 tokens; request at most 63"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_text(SPEAKER, SPOKEN, prompts, TOKENIZER, **options)
