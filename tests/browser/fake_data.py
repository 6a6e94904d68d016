"""Data of the page for a model that does not exist: random, but as consistent as a real model's.

Shapes: T tokens, L blocks, H heads, V vocabulary, N stored next tokens, K alternatives.
"""

import base64
import gzip

import numpy as np

WIDTH = 1 / 32  # of a bin of logits
WORDS = (
    "The", " cat", " sat", " on", " the", " mat", ".", " It", " was", " warm", "\n", " dog",
    " and", " a", " small", " house", ",", " in", " old", " tree", " 7", "ing", "ed", " of",
)  # fmt: skip


def pack(array, dtype):
    """Return an array as the page reads it."""
    stored = np.ascontiguousarray(array, np.dtype(dtype).newbyteorder("<"))
    data = base64.b64encode(gzip.compress(stored.tobytes(), mtime=0)).decode()
    return {"dtype": dtype, "shape": list(stored.shape), "data": data}


def numbers(packed):
    """Return the array that `pack` stored."""
    stored = gzip.decompress(base64.b64decode(packed["data"]))
    return np.frombuffer(stored, packed["dtype"]).reshape(packed["shape"])


def log_softmax(x):
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def stored_next(logits, stored):
    """Return the `stored` highest logits of each row, and the others counted in bins."""
    order = np.argsort(-logits, axis=1, kind="stable")
    best, others = order[:, :stored], order[:, stored:]
    tail = np.take_along_axis(logits, others, 1)
    low = tail.min(1) if tail.size else np.zeros(len(logits))
    bins = ((tail - low[:, None]) / WIDTH).astype(int)
    counts = np.zeros((len(logits), bins.max() + 1 if tail.size else 0), int)
    for row, of_row in enumerate(bins):
        np.add.at(counts[row], of_row, 1)
    return {
        "ids": pack(best, "uint32"),
        "logits": pack(np.take_along_axis(logits, best, 1), "float32"),
        "tail": {"low": pack(low, "float32"), "width": WIDTH, "counts": pack(counts, "uint32")},
    }


def fake_model(rng, ids, *, name, layers, heads, vocab_size, stored, k=5):
    """Return a model's data, in which every number that can be derived is derived."""
    count = len(ids)
    stream = (
        rng.normal(size=(layers + 1, count, vocab_size))
        * np.linspace(0.8, 2.5, layers + 1)[:, None, None]
    )
    depth = np.arange(1, layers + 2)[:, None]
    stream[:, np.arange(count - 1), ids[1:]] += (
        depth * rng.uniform(0, 9, (1, count - 1)) / (layers + 1)
    )
    stream = stream.astype(np.float32)
    logits = stream[-1]
    target = np.append(ids[1:], logits[-1].argmax())
    logprobs = log_softmax(stream)
    at_target = np.take_along_axis(
        logprobs, np.broadcast_to(target, (layers + 1, count))[..., None], 2
    )
    ranks = (logprobs > at_target).sum(2)
    best = np.argsort(-logprobs, axis=2, kind="stable")[..., :k]

    lower = np.tril(np.ones((count, count), bool))
    scores = rng.normal(size=(layers, heads, count, count)) * 1.5
    kinds = rng.integers(0, 4, (layers, heads))
    query, key = np.indices((count, count))
    scores += 4 * np.where(kinds == 0, 1, 0)[..., None, None] * (key == query - 1)
    scores += 4 * np.where(kinds == 1, 1, 0)[..., None, None] * (key == 0)
    weights = np.exp(np.where(lower, scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    before = weights[..., np.arange(1, count), np.arange(count - 1)]

    no_case = np.full((layers, heads), np.nan)

    def effect(*shape):
        return -rng.gamma(0.3, 0.6, shape) + rng.gamma(0.2, 0.3, shape)

    def distributions(*shape):
        shuffled = rng.permuted(best[-1], axis=1)
        p = np.sort(rng.dirichlet(np.ones(k), (*shape, count)) * 0.8, -1)[..., ::-1]
        return pack(np.broadcast_to(shuffled, p.shape), "uint32"), pack(p, "float32")

    norms = rng.gamma(20, 2, (layers + 1, count))
    head_ids, head_probs = distributions(layers, heads)
    feed_forward_ids, feed_forward_probs = distributions(layers)
    parts = {
        "heads": rng.normal(size=(layers, heads, count)),
        "attention_bias": 0.2 * rng.normal(size=(layers, count)),
        "feed_forward": 2 * rng.normal(size=(layers, count)),
        "final_norm": 0.3 * rng.normal(size=count),
    }
    logit = logits[np.arange(count), target]
    parts["embeddings"] = logit - sum(part.reshape(-1, count).sum(0) for part in parts.values())
    return {
        "name": name,
        "layers": layers,
        "heads": heads,
        "width": 16 * heads,
        "vocab_size": vocab_size,
        "context": 256,
        "dtype": "float32",
        "target": target.tolist(),
        "logprob": pack(at_target[-1, :, 0], "float32"),
        "rank": pack(ranks[-1], "int32"),
        "next": stored_next(logits, min(stored, vocab_size)),
        "lens": {
            "ids": pack(best, "uint32"),
            "probs": pack(np.exp(np.take_along_axis(logprobs, best, 2)), "float32"),
            "target_rank": pack(ranks, "int32"),
            "target_logprob": pack(at_target[..., 0], "float32"),
        },
        "attention": pack(np.round(weights * 255), "uint8"),
        "head_scores": {
            "previous token": pack(before.mean(-1) if count > 1 else no_case, "float32"),
            "first token": pack(weights[..., 0].mean(-1), "float32"),
            "same token": pack(rng.uniform(size=(layers, heads)), "float32"),
            "induction": pack(no_case, "float32"),
        },
        "ablation": {
            "heads": pack(effect(layers, heads, count), "float32"),
            "feed_forward": pack(2 * effect(layers, count), "float32"),
            "head_ids": head_ids,
            "head_probs": head_probs,
            "feed_forward_ids": feed_forward_ids,
            "feed_forward_probs": feed_forward_probs,
        },
        "residual": {"norm": pack(np.sort(norms, axis=0), "float32")},
        "attribution": {
            **{part: pack(values, "float32") for part, values in parts.items()},
            "logit": pack(logit, "float32"),
        },
    }


FUNCTIONS = {
    "tokens": "obscura_jax.look.inside.inside",
    "next": "obscura_jax.decoding.sampling.filter_logits",
    "lens": "obscura_jax.look.lens.logit_lens",
    "attention": "obscura_jax.look.inside.inside",
    "head_scores": "obscura_jax.look.heads.head_scores",
    "ablation": "obscura_jax.look.ablation.head_ablations",
    "attribution": "obscura_jax.look.attribution.direct_logit_attribution",
    "residual": "obscura_jax.look.inside.inside",
}


def fake_data(
    count=12,
    *,
    seed=0,
    models=("tiny",),
    layers=(4, 4),
    heads=(3, 3),
    vocab_size=500,
    stored=256,
    frames=0,
    texts=None,
):
    """Return the data of a page; `texts` replaces the texts of the first tokens."""
    rng = np.random.default_rng(seed)
    words = [*(texts or ()), *WORDS]
    vocab = {i: words[i] if i < len(words) else f" w{i}" for i in range(vocab_size)}
    ids = np.arange(count) % len(words) if texts else rng.integers(0, len(WORDS), count)
    encoded = {i: text.encode("utf-8", "replace").hex(" ") for i, text in vocab.items()}
    tokens = [{"id": i, "text": vocab[i], "bytes": encoded[i]} for i in ids.tolist()]
    sizes = {"vocab_size": vocab_size, "stored": stored}
    shown = [
        fake_model(rng, ids, name=name, layers=layers[m], heads=heads[m], **sizes)
        for m, name in enumerate(models)
    ]
    for m, model in enumerate(shown if frames else []):
        earlier = [
            fake_model(rng, ids, name="", layers=layers[m], heads=heads[m], **sizes)
            for _ in range(frames - 1)
        ]
        model["frames"] = [
            {"step": 100 * f, **{part: at[part] for part in ("logprob", "lens", "attention")}}
            for f, at in enumerate([*earlier, model])
        ]
    return {
        "format": "obscura-look",
        "version": 1,
        "package": "0.2.0.dev0",
        "tokens": tokens,
        "texts": {str(i): text for i, text in vocab.items()},
        "functions": FUNCTIONS,
        "models": shown,
    }
