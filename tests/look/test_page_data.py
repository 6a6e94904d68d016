"""The data of the page: packed arrays, candidates and the others in bins, and its size."""

from dataclasses import replace

import numpy as np
import pytest

from obscura_jax import GPT_CONFIG_124M, GPTConfig
from obscura_jax.look import Ablations, Attribution, Inside, Prediction, inside
from obscura_jax.look.assemble import look_page
from obscura_jax.look.page_data import Looked, pack, page_data, unpack
from obscura_jax.look.token_text import TokenText
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.tokenizers import gpt2_tokenizer
from tests.support.models import BIASED, model_of

SMALL = replace(BIASED, vocab_size=400)


@pytest.fixture(scope="module")
def found():
    return inside(GPTModel(SMALL), model_of(SMALL), [7, 300, 12, 7])


@pytest.fixture(scope="module")
def data(found):
    return page_data([Looked("small", SMALL, "float32", found)], TokenText(gpt2_tokenizer(400)))


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint32", "int32"])
def test_packed_arrays_are_unpacked(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    packed = pack(array, dtype)
    assert packed["shape"] == (2, 3)
    assert unpack(packed).dtype == dtype
    assert unpack(packed).tolist() == array.tolist()
    assert unpack(pack(array[::-1], dtype)).tolist() != array.tolist()


@pytest.mark.slow
def test_entries_are_the_arrays_of_inside(data, found):
    (model,) = data["models"]
    assert [token["id"] for token in data["tokens"]] == [7, 300, 12, 7]
    assert model["target"] == found.target.tolist()
    assert unpack(model["logprob"]).tolist() == found.prediction.target_logprob.tolist()
    assert unpack(model["lens"]["probs"]).tolist() == found.lens.probs.tolist()
    assert unpack(model["ablation"]["heads"]).tolist() == found.ablations.heads_change.tolist()
    assert unpack(model["attribution"]["heads"]).tolist() == found.attribution.heads.tolist()
    attention = unpack(model["attention"]) / 255
    assert 0 < np.abs(attention - found.attention).max() <= 0.5 / 255 + 1e-7


@pytest.mark.slow
def test_candidates_are_the_best_and_the_others_are_counted(data, found):
    (model,) = data["models"]
    ids, logits = (unpack(model["next"][name]) for name in ("ids", "logits"))
    tail = model["next"]["tail"]
    low, counts = unpack(tail["low"]), unpack(tail["counts"])
    order = np.argsort(-found.logits, axis=1, kind="stable")
    assert ids.tolist() == order[:, :256].tolist()
    assert logits.tolist() == np.take_along_axis(found.logits, ids.astype(int), axis=1).tolist()
    assert counts.sum(axis=1).tolist() == [400 - 256] * 4
    for t in range(4):
        others = found.logits[t, order[t, 256:]]
        first, *_, last = np.flatnonzero(counts[t])
        assert low[t] + tail["width"] * first <= others.min() < low[t] + tail["width"] * (first + 1)
        assert low[t] + tail["width"] * last <= others.max() < low[t] + tail["width"] * (last + 1)
        # At temperature 1 the bins have the mass of their tokens; measured: within 5.4e-4.
        middles = low[t] + tail["width"] * (np.arange(counts.shape[1]) + 0.5)
        mass = (counts[t] * np.exp(middles)).sum()
        assert abs(mass / np.exp(others).sum() - 1) <= 2.2e-3
        assert abs(mass / np.exp(found.logits[t]).sum() - 1) > 0.1


def test_a_small_vocabulary_has_no_others():
    cfg = replace(SMALL, vocab_size=20)
    found = inside(GPTModel(cfg), model_of(cfg), [3, 4], ablate=False)
    entry = page_data([Looked("x", cfg, "float32", found)], TokenText(gpt2_tokenizer(400)))
    following = entry["models"][0]["next"]
    assert unpack(following["ids"]).shape == (2, 20)
    assert not unpack(following["tail"]["counts"]).any()
    assert entry["models"][0]["ablation"] is None


def test_every_id_that_can_be_shown_has_a_text(data):
    (model,) = data["models"]
    for packed in (model["next"]["ids"], model["lens"]["ids"], model["ablation"]["head_ids"]):
        assert {str(token) for token in np.unique(unpack(packed))} <= set(data["texts"])
    assert {str(token) for token in model["target"]} <= set(data["texts"])


def test_incomplete_characters_have_bytes():
    tokens = TokenText(gpt2_tokenizer())
    first, *_ = gpt2_tokenizer().encode("🙂")
    assert tokens.text(first) == "\ufffd"
    assert tokens.hex_bytes(first) == "f0 9f"
    assert (tokens.text(50257), tokens.hex_bytes(50257)) == ("\ufffd", None)  # of a padded model
    assert tokens.hex_bytes(gpt2_tokenizer().encode("é")[0]) == "c3 a9"


def random_inside(cfg: GPTConfig, length: int) -> Inside:
    """Return random arrays, which compress worse than a model's."""
    rng = np.random.default_rng(0)
    blocks, heads, v, t = cfg.n_layers, cfg.n_heads, cfg.vocab_size, length

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    def prediction(*axes):
        ids = rng.integers(0, v, (*axes, t, 5))
        probs = rng.random((*axes, t, 5)).astype(np.float32)
        return Prediction(ids, probs, rng.integers(0, v, (*axes, t)), normal(*axes, t))

    attention = np.tril(rng.random((blocks, heads, t, t))) ** 8
    attribution = (
        *(normal(t), normal(blocks, heads, t), normal(blocks, t), normal(blocks, t)),
        *(normal(t), normal(t)),
    )
    return Inside(
        ids=rng.integers(0, v, t),
        target=rng.integers(0, v, t),
        logits=3 * normal(t, v),
        prediction=prediction(),
        lens=prediction(blocks + 1),
        attention=attention / attention.sum(axis=-1, keepdims=True),
        head_scores={name: normal(blocks, heads) for name in "abcd"},
        residual_norm=normal(blocks + 1, t),
        attribution=Attribution(*attribution),
        ablations=Ablations(
            prediction(blocks, heads),
            prediction(blocks),
            normal(blocks, heads, t),
            normal(blocks, t),
        ),
    )


def test_a_page_of_gpt2_with_32_tokens_is_below_2_mb():
    cfg = GPTConfig.of(GPT_CONFIG_124M)
    looked = Looked("gpt2", cfg, "float32", random_inside(cfg, 32))
    page = look_page(page_data([looked], TokenText(gpt2_tokenizer())))
    # Measured: 0.98 MB of random numbers.
    assert 900_000 < len(page.encode()) < 2_000_000
