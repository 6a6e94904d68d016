"""A stream adds up to the output of `generate`, and no piece of it comes too early."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obscura_jax import GPTConfig, GPTModel, generate
from obscura_jax.decoding.engine import Generator
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.stream import stream
from obscura_jax.decoding.text import TextStream, decode_until_stop, generate_text, stream_text
from obscura_jax.rng.torch_generator import torch_seed_init
from obscura_jax.text.tokenizers import gpt2_tokenizer
from tests.support.generation import MODEL, NEW, PARAMS, ROWS, SAMPLED, joined, options
from tests.support.rounds import rounds

SPEAKING = GPTConfig(50257, 64, 8, 2, 1, 0.1, False)
TOKENIZER = gpt2_tokenizer()


# Tokens.


@pytest.mark.parametrize("keywords", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_stream_adds_up_to_the_output_of_generate(keywords):
    free = generate(MODEL, PARAMS, ROWS, NEW, **keywords).tokens
    stops = [[free[0][4]], [], [free[2][11], free[2][15]], [free[3][0]]]
    ended = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=stops, **keywords).tokens
    assert ended != free
    before = DEFAULT_PROGRAMS.n_compilations()
    plain, stopping = options(**keywords), options(stop_ids=stops, **keywords)
    for size in (1, 3, 100):
        assert joined(stream(MODEL, PARAMS, ROWS, NEW, plain, tokens_per_chunk=size)) == free
        chunks = list(stream(MODEL, PARAMS, ROWS, NEW, stopping, tokens_per_chunk=size))
        assert joined(chunks) == ended
        sizes = [len(ids[1]) for ids in chunks]  # the row that never stops
        assert sizes[0] == 1
        assert all(one == size for one in sizes[1:-1])
        assert sum(sizes) == NEW
    assert DEFAULT_PROGRAMS.n_compilations() == before
    other = [[(token + 1) % 61 for token in row] for row in ROWS]
    assert joined(stream(MODEL, PARAMS, other, NEW, plain)) != free


@pytest.mark.slow
def test_a_stream_may_slide_past_the_context():
    expected = generate(MODEL, PARAMS, ROWS, sliding_window=True).tokens
    sliding = options(sliding_window=True)
    chunks = joined(stream(MODEL, PARAMS, ROWS, None, sliding, tokens_per_chunk=9))
    assert chunks == expected
    assert [len(row) for row in chunks] == [64] * 4


@pytest.mark.slow
def test_a_stream_fits_in_the_context_by_default():
    count = 67 - 40
    chunks = joined(stream(MODEL, PARAMS, ROWS))
    assert [len(row) for row in chunks] == [count] * 4
    assert chunks == joined(stream(MODEL, PARAMS, ROWS, count))
    with pytest.raises(ValueError, match="fills the context of 67 tokens"):
        stream(MODEL, PARAMS, [[1] * 67])


def test_a_stream_ends_with_its_last_row():
    free = generate(MODEL, PARAMS, ROWS, NEW).tokens
    stopping = options(stop_ids=[[row[3]] for row in free])
    chunks = list(stream(MODEL, PARAMS, ROWS, NEW, stopping, tokens_per_chunk=2))
    assert len(chunks) <= 3
    assert joined(chunks) == [row[: row.index(row[3])] for row in free]


def test_a_stream_is_computed_while_it_is_read():
    chunks = stream(MODEL, PARAMS, ROWS, NEW, tokens_per_chunk=1)
    first = next(chunks)
    assert [len(ids) for ids in first] == [1, 1, 1, 1]
    assert next(chunks) != []
    chunks.close()


@pytest.mark.parametrize("size", [0, 1.5])
def test_a_bad_chunk_size_is_rejected_at_the_call(size):
    message = f"tokens_per_chunk must be a whole number of at least 1, got {size}"
    with pytest.raises(ValueError, match=message):
        stream(MODEL, PARAMS, ROWS, 5, tokens_per_chunk=size)


@pytest.mark.parametrize(
    ("prompts", "new", "keywords", "message"),
    [
        ([], 5, {}, "the batch is empty"),
        ([[1], []], 5, {}, "prompt 1: the prompt is empty"),
        ([[61]], 5, {}, "prompt 0: .*outside the vocabulary"),
        (ROWS, 0, {}, "max_new_tokens must be"),
        (ROWS, 60, {}, "40 prompt tokens . 60 new tokens exceed the context of 67 tokens"),
        (ROWS, 5, {"temperature": -1}, "temperature must be"),
        (ROWS, 5, {"temperature": 1.0}, "needs a key"),
        (ROWS, 5, {"top_k": [1, 2]}, "top_k lists 2 values for 4 rows"),
        (ROWS, 5, {"stop_ids": [61]}, "stop_ids: "),
    ],
)
def test_what_generate_rejects_is_rejected_at_the_call(prompts, new, keywords, message):
    with pytest.raises(ValueError, match=message):
        stream(MODEL, PARAMS, prompts, new, options(**keywords))
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, prompts, new, **keywords)


def test_damaged_weights_end_the_stream():
    damaged = jax.tree.map(lambda leaf: leaf * jnp.nan, PARAMS)
    chunks = stream(MODEL, damaged, ROWS, 5)
    with pytest.raises(ValueError, match="logits are NaN or infinite; its weights are damaged"):
        next(chunks)


# Text.

WORDS = "naïve 世界 👩‍👩‍👧 🏳️‍🌈 e\u0301 Hello, world\n"
IDS = TOKENIZER.encode(WORDS)


def cut_at_first(text: str, stop) -> str:
    return text[: min((text.find(s) for s in stop if s in text), default=len(text))]


def pieces_of(ids, splits, stop=()):
    """Return the pieces of a stream for `ids` fed in parts that begin at `splits`."""
    text = TextStream(TOKENIZER, stop)
    edges = sorted({0, *(n % (len(ids) + 1) for n in splits), len(ids)})
    pieces = [text.feed(ids[a:b]) for a, b in pairwise(edges)]
    return [*pieces, text.finish()], text


# Single bytes (ids below 256) break characters in every way; the pieces of WORDS mend some.
ANY_IDS = st.lists(st.integers(0, 255) | st.integers(0, 50256) | st.sampled_from(IDS), max_size=24)
SPLITS = st.lists(st.integers(0, 99), max_size=8)


@settings(max_examples=rounds(40, 200), deadline=None)
@given(ids=ANY_IDS, splits=SPLITS)
def test_the_pieces_add_up_to_the_text_of_the_tokenizer(ids, splits):
    pieces, text = pieces_of(ids, splits)
    assert "".join(pieces) == TOKENIZER.decode(ids)
    assert not text.stopped
    assert text.finish() == ""


@settings(max_examples=rounds(40, 200), deadline=None)
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


def test_no_character_is_split():
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


def test_text_is_held_back_only_while_it_may_become_a_stop_string():
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


@settings(max_examples=rounds(40, 200), deadline=None)
@given(
    ids=st.lists(st.sampled_from([64, 65, 66]), max_size=16),  # a, b, c
    stop=st.lists(st.text("abc", min_size=1, max_size=3), max_size=3),
    least=st.integers(0, 17),
    parts=st.lists(st.integers(0, 16), max_size=4),
)
def test_stop_strings_that_begin_too_early_are_ignored(ids, stop, least, parts):
    whole = TOKENIZER.decode(ids)
    expected = whole[:least] + cut_at_first(whole[least:], stop)
    edges = sorted({0, *(min(n, len(ids)) for n in parts), len(ids)})
    text = TextStream(TOKENIZER, stop, least)
    pieces = [text.feed(ids[a:b]) for a, b in pairwise(edges)]
    assert "".join([*pieces, text.finish()]) == expected
    assert decode_until_stop(TOKENIZER, ids, stop, least)[0] == expected


def test_the_minimum_length_counts_tokens_of_the_text():
    ids = TOKENIZER.encode("One two, three; one two, three.")
    assert decode_until_stop(TOKENIZER, ids, [", three"], 0)[0] == "One two"
    assert decode_until_stop(TOKENIZER, ids, [", three"], 3)[0] == "One two, three; one two"


def test_a_text_stream_rejects_empty_stop_strings():
    for stop in ([""], ["a", ""], "word"):
        with pytest.raises(ValueError, match="stop must be a list of strings that are not empty"):
            TextStream(TOKENIZER, stop)


# Text to text.

SPEAKER = GPTModel(SPEAKING)
SPOKEN = torch_seed_init(SPEAKING, 7)
PROMPTS = ["Hello, I am", "naïve → 世界", "<|endoftext|>"]
ENCODED = [TOKENIZER.encode(prompt, allowed_special="all") for prompt in PROMPTS]


def joined_text(pieces):
    return ["".join(row) for row in zip(*pieces, strict=True)]


def test_streamed_text_is_the_text_of_the_tokens():
    expected = [TOKENIZER.decode(ids) for ids in generate(SPEAKER, SPOKEN, ENCODED, 20).tokens]
    for tokens_per_chunk in (1, 6):
        pieces = list(
            stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, tokens_per_chunk=tokens_per_chunk)
        )
        assert joined_text(pieces) == expected
    sampled = {"temperature": 0.8, "key": jax.random.key(3)}
    drawn = generate(SPEAKER, SPOKEN, ENCODED, 20, **sampled).tokens
    pieces = stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, options(**sampled))
    assert joined_text(pieces) == [TOKENIZER.decode(ids) for ids in drawn] != expected


@pytest.mark.slow
def test_streamed_text_fits_in_the_context_by_default():
    count = SPEAKING.context_length - max(map(len, ENCODED))
    expected = [TOKENIZER.decode(ids) for ids in generate(SPEAKER, SPOKEN, ENCODED, count).tokens]
    assert joined_text(stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER)) == expected
    assert count < SPEAKING.context_length - len(ENCODED[-1])


def test_streamed_text_ends_with_the_last_row():
    ids = generate(SPEAKER, SPOKEN, ENCODED, 20).tokens
    texts = [TOKENIZER.decode(row) for row in ids]
    stop = [text[2:9] for text in texts]  # across tokens, early in every row
    pieces = list(
        stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, tokens_per_chunk=1, stop=stop)
    )
    assert joined_text(pieces) == [cut_at_first(text, stop) for text in texts] != texts
    assert len(pieces) < 19
    # A row that a stop id ends returns the text it held back, while other rows continue.
    last = TOKENIZER.decode(ids[0][:3])
    stopping = options(stop_ids=[[ids[0][3]], [], []])
    held = {"stop": [last[-1] + "\x00"], "tokens_per_chunk": 1}
    pieces = list(stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, stopping, **held))
    assert joined_text(pieces[:5])[0] == last
    assert len(pieces) >= 20


def test_generated_text_is_the_streamed_text():
    stopping = options(temperature=0.8, key=jax.random.key(3))
    full = generate_text(Generator(SPEAKER, SPOKEN), PROMPTS, TOKENIZER, 20, stopping)
    assert [out.finish_reason for out in full] == ["length"] * 3
    assert [len(out.tokens) for out in full] == [20] * 3
    stop = [full[1].text[2:9]]
    outputs = generate_text(Generator(SPEAKER, SPOKEN), PROMPTS, TOKENIZER, 20, stopping, stop=stop)
    pieces = stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, stopping, stop=stop)
    assert [out.text for out in outputs] == joined_text(pieces)
    assert [out.prompt for out in outputs] == PROMPTS
    assert outputs[1].finish_reason == "stop"
    assert outputs[1].text == full[1].text[:2]
    assert outputs[1].tokens == full[1].tokens[: len(outputs[1].tokens)] != full[1].tokens
    assert outputs[1].logprobs == full[1].logprobs[: len(outputs[1].tokens)]
    later = options(temperature=0.8, key=jax.random.key(3), min_new_tokens=[0, 20, 0])
    outputs = generate_text(Generator(SPEAKER, SPOKEN), PROMPTS, TOKENIZER, 20, later, stop=stop)
    pieces = stream_text(SPEAKER, SPOKEN, PROMPTS, TOKENIZER, 20, later, stop=stop)
    assert [out.text for out in outputs] == joined_text(pieces)
    assert outputs[1].text == full[1].text
    with pytest.raises(ValueError, match="stop must be a list"):
        generate_text(Generator(SPEAKER, SPOKEN), PROMPTS, TOKENIZER, 20, stop=[""])


def test_text_errors_are_raised_at_the_call():
    for prompts, keywords, message in (
        (["a", ""], {}, "prompt 1: the prompt is empty"),
        (["a"], {"stop": [""]}, "stop must be a list"),
        (["a"], {"tokens_per_chunk": 0}, "tokens_per_chunk must be"),
        (["a"], {"max_new_tokens": 64}, "exceed the context of 64 tokens; request at most 63"),
    ):
        with pytest.raises(ValueError, match=message):
            stream_text(SPEAKER, SPOKEN, prompts, TOKENIZER, **keywords)
