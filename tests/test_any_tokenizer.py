"""Any tokenizer: its own ids, its own text even in pieces, and U+FFFD for unknown ids."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from obscura_jax.decoding.text import TextStream, decode_until_stop
from obscura_jax.text.any_tokenizer import IncrementalDecoder, token_ids
from obscura_jax.text.tokenizers import (
    END_OF_TEXT,
    SimpleTokenizerV2,
    build_vocab,
    gpt2_tokenizer,
)
from tests.support.tokenizer_folders import TEXTS, bpe, transformers

WORDS = SimpleTokenizerV2(build_vocab(["the", "cat", "sat", "."], (END_OF_TEXT, "<|unk|>")))
TRAINED = bpe(400)


def metaspace():
    letters = "abcdehlo"
    pieces = [("<unk>", 0.0), *((x, -2.0) for x in letters), *(("▁" + x, -1.0) for x in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return tokenizer


class Letters:
    """The least that a tokenizer can be."""

    def encode(self, text):
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids):
        return "".join("abcdefghijklmnopqrstuvwxyz"[i] for i in ids)


def fast():
    return transformers().PreTrainedTokenizerFast(tokenizer_object=TRAINED, eos_token=END_OF_TEXT)


ALL = {
    "tiktoken": (gpt2_tokenizer(400), 400),
    "words": (WORDS, len(WORDS.str_to_int)),
    "tokenizers": (TRAINED, 400),
    "metaspace": (metaspace(), 17),
    "transformers": (fast(), 400),
    "letters": (Letters(), 26),
}


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_pieces_join_to_the_tokenizers_own_text(name, data):
    tokenizer, count = ALL[name]
    ids = data.draw(st.lists(st.integers(0, count - 1), max_size=24))
    splits = data.draw(st.lists(st.integers(0, len(ids)), max_size=6))
    text = IncrementalDecoder(tokenizer)
    pieces = [text.feed(ids[a:b]) for a, b in pairwise(sorted({0, *splits, len(ids)}))]
    whole = tokenizer.decode(ids)
    for n in range(1, len(pieces) + 1):
        assert whole.startswith("".join(pieces[:n]))  # never too early
    assert "".join([*pieces, text.finish()]) == whole


@pytest.mark.parametrize("name", ALL)
def test_ids_that_the_tokenizer_lacks_become_the_replacement_character(name):
    tokenizer, count = ALL[name]
    known = [1, 2, 3]
    text = tokenizer.decode(known)
    for unknown in (count, count + 1, 60000, 2**40):
        assert decode_until_stop(tokenizer, [unknown]) == ("\ufffd", 1, False)
        shown, taken, stopped = decode_until_stop(tokenizer, [*known, unknown, unknown, *known])
        assert shown == f"{text}\ufffd\ufffd{text}"
        assert (taken, stopped) == (8, False)
        assert decode_until_stop(tokenizer, [*known, unknown, *known], ["\ufffd"]) == (
            text,
            4,
            True,
        )
    assert "\ufffd" not in text


@pytest.mark.parametrize("tokenizer", [TRAINED, fast()], ids=["tokenizers", "transformers"])
def test_the_ids_are_the_tokenizers_own(tokenizer):
    for text in TEXTS:
        ids = TRAINED.encode(text).ids
        assert token_ids(tokenizer, text) == ids
        assert type(token_ids(tokenizer, text)) is list
        assert gpt2_tokenizer(400).encode(text, allowed_special="all") != ids


def test_special_tokens_in_a_text_are_one_id_each():
    assert token_ids(gpt2_tokenizer(), "a<|endoftext|>") == [64, 50256]
    assert token_ids(TRAINED, "a<|endoftext|>")[-1] == 0
    assert token_ids(WORDS, "the cat<|endoftext|>")[-1] == WORDS.str_to_int[END_OF_TEXT]


def test_ids_may_be_of_numpy():
    ids = np.array(TRAINED.encode(TEXTS[3]).ids, np.int32)
    for tokenizer in (TRAINED, fast(), Letters()):
        few = ids % 26
        assert decode_until_stop(tokenizer, few)[0] == tokenizer.decode(few.tolist())


def test_a_character_waits_for_its_bytes_and_a_stop_string_for_its_end():
    ids = TRAINED.encode("世界 END").ids
    text = TextStream(TRAINED, ["END"])
    pieces = [text.feed([token]) for token in ids]
    assert "".join([*pieces, text.finish()]) == "世界 "
    assert text.stopped
    assert "" in pieces
    assert "\ufffd" not in "".join(pieces)
    assert "\ufffd" in "".join(TRAINED.decode([token]) for token in ids)


def test_bytes_that_never_become_a_character_are_text_at_the_end():
    first, *_ = TRAINED.encode("世").ids
    text = IncrementalDecoder(TRAINED)
    assert text.feed([first]) == ""
    assert text.finish() == "\ufffd"
    assert text.finish() == ""
