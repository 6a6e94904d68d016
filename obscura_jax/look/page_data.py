"""The data of the page: what `inside` returns, as JSON with packed arrays.

A packed array is `{"dtype", "shape", "data"}`, where `data` is the base64 of the gzip of its bytes
in C order, little-endian. VERSION changes when the page of an earlier version could not show it.
"""

import base64
import gzip
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from obscura_jax import __version__
from obscura_jax.config import GPTConfig
from obscura_jax.look.inside_model import Ablations, Inside, Prediction
from obscura_jax.look.token_text import TokenText

FORMAT, VERSION = "obscura-look", 1
_CANDIDATES = 256  # most probable next tokens whose logits are stored
_BIN = 2.0**-5  # width of the bins in which the logits of the others are counted
_HERE = "obscura_jax.look"
# What the page shows -> the function that computes it.
FUNCTIONS = {
    "tokens": f"{_HERE}.inside_model.inside",
    "next": "obscura_jax.decoding.sampling.filter_logits",
    "lens": f"{_HERE}.lens.logit_lens",
    "attention": "obscura_jax.nn.attention.attention_weights",
    "head_scores": f"{_HERE}.head_scores",
    "ablation": f"{_HERE}.ablation.head_ablations",
    "attribution": f"{_HERE}.attribution.direct_logit_attribution",
    "residual": f"{_HERE}.activations.read_activations",
}


@dataclass(frozen=True)
class Looked:
    """A model and what it computed for the text.

    Attributes:
        name: a name for the reader.
        cfg: the model's config.
        dtype: the type of its parameters, such as "float32".
        found: what it computed.
    """

    name: str
    cfg: GPTConfig
    dtype: str
    found: Inside


def page_data(models: Sequence[Looked], tokens: TokenText) -> dict[str, Any]:
    """Return the data of a page about one model, or two with the same tokens."""
    ids = models[0].found.ids.tolist()
    candidates = [_candidates(model.found.logits) for model in models]
    mentioned = _mentioned(models, candidates)
    return {
        "format": FORMAT,
        "version": VERSION,
        "package": __version__,
        "tokens": [
            {"id": token, "text": tokens.text(token), "bytes": tokens.hex_bytes(token)}
            for token in ids
        ],
        "texts": {str(token): tokens.text(token) for token in mentioned},
        "functions": FUNCTIONS,
        "models": [_model(*each) for each in zip(models, candidates, strict=True)],
    }


def ablation_data(ablations: Ablations | None) -> dict[str, Any] | None:
    """Return the entry "ablation" of a model."""
    if ablations is None:
        return None
    return {
        "heads": pack(ablations.heads_change),
        "feed_forward": pack(ablations.feed_forward_change),
        "head_ids": pack(ablations.heads.ids, "uint32"),
        "head_probs": pack(ablations.heads.probs),
        "feed_forward_ids": pack(ablations.feed_forward.ids, "uint32"),
        "feed_forward_probs": pack(ablations.feed_forward.probs),
    }


# The entries of a model that a frame of a training run has too.
FRAME = ("target", "logprob", "rank", "lens", "attention", "head_scores")


def _frame(found: Inside) -> dict[str, Any]:
    """Return the entries in `FRAME`."""
    return {
        "target": found.target.tolist(),
        "logprob": pack(found.prediction.target_logprob),
        "rank": pack(found.prediction.target_rank, "int32"),
        "lens": _lens(found.lens),
        "attention": pack(np.rint(found.attention * 255), "uint8"),
        "head_scores": {name: pack(score) for name, score in found.head_scores.items()},
    }


def pack(array: Any, dtype: str = "float32") -> dict[str, Any]:
    """Return a packed array."""
    array = np.asarray(array).astype(np.dtype(dtype).newbyteorder("<"))
    data = gzip.compress(array.tobytes(), compresslevel=9, mtime=0)
    return {"dtype": dtype, "shape": array.shape, "data": base64.b64encode(data).decode()}


def unpack(packed: Mapping[str, Any]) -> np.ndarray:
    """Return the array of a packed one."""
    data = gzip.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(data, np.dtype(packed["dtype"]).newbyteorder("<")).reshape(packed["shape"])


def _model(model: Looked, candidates: np.ndarray) -> dict[str, Any]:
    cfg, found = model.cfg, model.found
    attribution = {name: pack(part) for name, part in found.attribution._asdict().items()}
    return {
        "name": model.name,
        "layers": cfg.n_layers,
        "heads": cfg.n_heads,
        "width": cfg.emb_dim,
        "vocab_size": cfg.vocab_size,
        "context": cfg.context_length,
        "dtype": model.dtype,
        **_frame(found),
        "next": _next(found.logits.astype(np.float32), candidates),
        "residual": {"norm": pack(found.residual_norm)},
        "attribution": attribution,
        "ablation": ablation_data(found.ablations),
    }


def _lens(lens: Prediction) -> dict[str, Any]:
    return {
        "ids": pack(lens.ids, "uint32"),
        "probs": pack(lens.probs),
        "target_rank": pack(lens.target_rank, "int32"),
        "target_logprob": pack(lens.target_logprob),
    }


def _next(logits: np.ndarray, ids: np.ndarray) -> dict[str, Any]:
    """Return the candidates at each position, and the others' logits counted in bins."""
    best = np.take_along_axis(logits, ids, axis=1)
    low = logits.min(axis=1)
    bins = int(((logits.max(axis=1) - low) / _BIN).max()) + 1

    def counted(values: np.ndarray) -> np.ndarray:
        """Return how many values of each row are in each bin."""
        rows = np.arange(len(values))[:, None]
        place = ((values - low[:, None]) / _BIN).astype(np.int64) + rows * bins
        return np.bincount(place.ravel(), minlength=len(values) * bins).reshape(-1, bins)

    others = counted(logits) - counted(best)
    return {
        "ids": pack(ids, "uint32"),
        "logits": pack(best),
        "tail": {"low": pack(low), "width": _BIN, "counts": pack(others, "uint32")},
    }


def _candidates(logits: np.ndarray) -> np.ndarray:
    """Return the ids of the most probable tokens of each row, the best first."""
    count = min(_CANDIDATES, logits.shape[1])
    ids = np.sort(np.argpartition(-logits, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(-np.take_along_axis(logits, ids, axis=1), axis=1, kind="stable")
    return np.take_along_axis(ids, order, axis=1)


def _mentioned(models: Iterable[Looked], candidates: Iterable[np.ndarray]) -> list[int]:
    """Return every token id that the page may show, sorted."""
    found: list[Any] = [*candidates]
    for model in models:
        inside = model.found
        found += [inside.ids, inside.target, inside.lens.ids]
        if inside.ablations is not None:
            found += [inside.ablations.heads.ids, inside.ablations.feed_forward.ids]
    mentioned: list[int] = np.unique(np.concatenate([np.ravel(ids) for ids in found])).tolist()
    return mentioned
