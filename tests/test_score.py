"""`score` returns the model's own log-probability of each token, and their perplexity."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel, generate, gpt2_tokenizer, score
from obscura_jax.decoding.score import _log_probabilities
from obscura_jax.rng.torch_generator import torch_seed_init
from tests.support import generation

CFG = replace(generation.CFG, context_length=307)
MODEL = GPTModel(CFG)
PARAMS = torch_seed_init(CFG, 123)
PARAMS["trf_blocks"] = jax.tree.map(lambda leaf: 2 * leaf, PARAMS["trf_blocks"])
ROUNDING = 4 * 4.3e-6  # measured: at most 4.3e-6 over 8 seeds, of log-probabilities of about 4


def texts(*lengths):
    return generation.prompts(*lengths, seed=3)


@jax.jit
def logits_of(ids):
    return MODEL.apply({"params": PARAMS}, ids)


def slow_log_probabilities(ids):
    padded = np.zeros((1, CFG.context_length), np.int32)  # one program for all lengths
    padded[0, : len(ids)] = ids
    logits = np.asarray(logits_of(padded)[0, : len(ids)], np.float64)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return [logits[i, after] for i, after in enumerate(ids[1:])]


def largest_difference(rows, others):
    return max(np.abs(np.subtract(a, b)).max() for a, b in zip(rows, others, strict=True))


def test_log_probabilities_are_the_models():
    """Lengths below, at and above a chunk of 128 positions, in one ragged batch."""
    rows = texts(2, 17, 128, 129, 307)
    out = score(MODEL, PARAMS, rows)
    want = [slow_log_probabilities(row) for row in rows]
    assert out.tokens == rows
    assert [len(row) for row in out.logprobs] == [len(row) - 1 for row in rows]
    assert largest_difference(out.logprobs, want) <= ROUNDING
    for got, row in zip(out.perplexity, want, strict=True):
        assert got == pytest.approx(math.exp(-np.mean(row)), rel=1e-5)
    assert out.corpus_perplexity == pytest.approx(
        math.exp(-np.mean(np.concatenate(want))), rel=1e-5
    )
    # Negative control: the log-probabilities of the tokens at the next position.
    assert largest_difference(out.logprobs[2:], [row[1:] + row[:1] for row in want[2:]]) > 0.1


def test_scores_agree_with_generate():
    (prompt,) = texts(20)
    out = generate(MODEL, PARAMS, [prompt], 30)
    scored = score(MODEL, PARAMS, [prompt + out.tokens[0]])
    assert largest_difference([scored.logprobs[0][19:]], out.logprobs) <= ROUNDING


def test_lengths_within_a_bucket_share_a_program():
    score(MODEL, PARAMS, texts(33, 40))
    before = _log_probabilities._cache_size()
    score(MODEL, PARAMS, texts(50, 64))
    assert _log_probabilities._cache_size() == before
    score(MODEL, PARAMS, texts(50, 65))
    assert _log_probabilities._cache_size() == before + 1


def test_a_text_of_one_token_has_nothing_to_score():
    out = score(MODEL, PARAMS, [[5]])
    assert out.logprobs == [[]]
    assert math.isnan(out.perplexity[0])


@pytest.mark.slow
def test_strings_are_encoded_with_the_gpt2_tokenizer():
    cfg = GPTConfig(
        vocab_size=50257,
        context_length=16,
        emb_dim=4,
        n_heads=1,
        n_layers=1,
        drop_rate=0.0,
        qkv_bias=False,
    )
    model = GPTModel(cfg)
    params = model.init(jax.random.key(0), [[0]])["params"]
    text = "the cat<|endoftext|>"
    ids = gpt2_tokenizer().encode(text, allowed_special="all")
    out = score(model, params, [text])
    assert (out.tokens, ids[-1]) == ([ids], 50256)
    assert out == score(model, params, [ids])


def test_bfloat16_is_close_to_float32():
    rows = texts(30)
    exact, rough = (score(MODEL, PARAMS, rows, dtype=t).logprobs for t in (None, jnp.bfloat16))
    assert 5e-3 < largest_difference(exact, rough) < 0.13  # measured over 8 seeds: 0.019 to 0.065


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the batch is empty"),
        ([[]], "prompt 0: the prompt is empty"),
        ([[1], [61]], "prompt 1: token id 61 is outside the vocabulary"),
        ([[1] * 308], "a text of 308 tokens exceeds context_length=307; split it"),
        ("one string", "texts must be a list of texts"),
        ([[[1, 2]]], "must be a flat list"),
    ],
)
def test_bad_texts_are_an_error_that_names_them(rows, message):
    with pytest.raises(ValueError, match=message):
        score(MODEL, PARAMS, rows)


def test_damaged_weights_are_an_error():
    broken = {**PARAMS, "tok_emb": {"weight": PARAMS["tok_emb"]["weight"].at[3].set(jnp.nan)}}
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(MODEL, broken, [[1, 3, 5]])
