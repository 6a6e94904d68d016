"""The PyTorch side of every comparison: the course's components, written for this project.

Constructor arguments, state-dict names (including the `mask` buffers) and the order in which
parameters are drawn are the course's. A course checkpoint therefore loads with `strict=True`, and
`torch.manual_seed(123)` reproduces the numbers that the course prints. The implementations are our
own, and as simple as possible, because the JAX code is compared with them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Config = Mapping[str, Any]


def softmax_naive(x: Tensor) -> Tensor:
    e = torch.exp(x)
    return e / e.sum(dim=-1, keepdim=True)


def simple_attention(x: Tensor) -> Tensor:
    return torch.softmax(x @ x.mT, dim=-1) @ x


def causal_mask(size: int) -> Tensor:
    """Return 1 above the diagonal, where a key is in the query's future, as in the course."""
    return torch.triu(torch.ones(size, size), diagonal=1)


def renormalized_causal_attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Mask after softmax, then renormalize each row."""
    weights = torch.softmax(queries @ keys.mT / keys.shape[-1] ** 0.5, dim=-1)
    weights = weights * (1 - causal_mask(keys.shape[-2]).to(weights.dtype))
    return weights / weights.sum(dim=-1, keepdim=True)


def masked_attention_weights(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Mask with -inf before softmax, wherever the (C, C) mask is not 0."""
    scores = queries @ keys.mT
    scores = scores.masked_fill(mask[: scores.shape[-2], : scores.shape[-1]].bool(), -torch.inf)
    return torch.softmax(scores / keys.shape[-1] ** 0.5, dim=-1)


def causal_attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    return masked_attention_weights(queries, keys, causal_mask(keys.shape[-2]))


def token_and_position_embedding(tok_emb: nn.Module, pos_emb: nn.Module, in_idx: Tensor) -> Tensor:
    return tok_emb(in_idx) + pos_emb(torch.arange(in_idx.shape[-1], device=in_idx.device))


class InputEmbedding(nn.Module):
    """The two embedding tables of chapter 2.8, which the course uses without a class."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])

    def forward(self, in_idx: Tensor) -> Tensor:
        return token_and_position_embedding(self.tok_emb, self.pos_emb, in_idx)


class SelfAttention_v1(nn.Module):  # noqa: N801 - the course's name
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.W_query = nn.Parameter(torch.rand(d_in, d_out))
        self.W_key = nn.Parameter(torch.rand(d_in, d_out))
        self.W_value = nn.Parameter(torch.rand(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = x @ self.W_query, x @ self.W_key, x @ self.W_value
        return torch.softmax(queries @ keys.mT / keys.shape[-1] ** 0.5, dim=-1) @ values


class SelfAttention_v2(nn.Module):  # noqa: N801 - the course's name
    def __init__(self, d_in: int, d_out: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.W_query(x), self.W_key(x), self.W_value(x)
        return torch.softmax(queries @ keys.mT / keys.shape[-1] ** 0.5, dim=-1) @ values


class CausalAttention(nn.Module):
    mask: Tensor

    def __init__(
        self, d_in: int, d_out: int, context_length: int, dropout: float, qkv_bias: bool = False
    ) -> None:
        super().__init__()
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", causal_mask(context_length))

    def forward(self, x: Tensor) -> Tensor:
        weights = masked_attention_weights(self.W_query(x), self.W_key(x), self.mask)
        return self.dropout(weights) @ self.W_value(x)


class MultiHeadAttentionWrapper(nn.Module):
    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            CausalAttention(d_in, d_out, context_length, dropout, qkv_bias)
            for _ in range(num_heads)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([head(x) for head in self.heads], dim=-1)


class MultiHeadAttention(nn.Module):
    mask: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        context_length: int,
        dropout: float,
        num_heads: int,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        if d_out % num_heads:
            raise ValueError("d_out must be divisible by num_heads")
        self.num_heads = num_heads
        self.W_query = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_key = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.W_value = nn.Linear(d_in, d_out, bias=qkv_bias)
        self.out_proj = nn.Linear(d_out, d_out)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mask", causal_mask(context_length))

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)

        queries, keys = heads(self.W_query(x)), heads(self.W_key(x))
        weights = masked_attention_weights(queries, keys, self.mask)
        context = self.dropout(weights) @ heads(self.W_value(x))
        return self.out_proj(context.transpose(-3, -2).flatten(-2))


class LayerNorm(nn.Module):
    def __init__(self, emb_dim: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.scale = nn.Parameter(torch.ones(emb_dim))
        self.shift = nn.Parameter(torch.zeros(emb_dim))

    def forward(self, x: Tensor) -> Tensor:
        centered = x - x.mean(dim=-1, keepdim=True)
        variance = centered.square().mean(dim=-1, keepdim=True)
        return self.scale * centered / torch.sqrt(variance + self.eps) + self.shift


class GELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        d = cfg["emb_dim"]
        self.layers = nn.Sequential(nn.Linear(d, 4 * d), GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ExampleDeepNeuralNetwork(nn.Module):
    def __init__(self, layer_sizes: Sequence[int], use_shortcut: bool) -> None:
        super().__init__()
        self.use_shortcut = use_shortcut
        pairs = pairwise(layer_sizes)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(a, b), GELU()) for a, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            y = layer(x)
            x = x + y if self.use_shortcut and x.shape == y.shape else y
        return x


def mean_abs_gradients(model: ExampleDeepNeuralNetwork, x: Tensor, target: Tensor) -> list[float]:
    """Return the mean |gradient| of each layer's weight for the mean squared error, in order."""
    weights = [p for name, p in model.named_parameters() if name.endswith("weight")]
    gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), target), weights)
    return [gradient.abs().mean().item() for gradient in gradients]


class TransformerBlock(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.att = MultiHeadAttention(
            d_in=cfg["emb_dim"],
            d_out=cfg["emb_dim"],
            context_length=cfg["context_length"],
            dropout=cfg["drop_rate"],
            num_heads=cfg["n_heads"],
            qkv_bias=cfg["qkv_bias"],
        )
        self.ff = FeedForward(cfg)
        self.norm1 = LayerNorm(cfg["emb_dim"])
        self.norm2 = LayerNorm(cfg["emb_dim"])
        self.drop_shortcut = nn.Dropout(cfg["drop_rate"])

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_shortcut(self.att(self.norm1(x)))
        return x + self.drop_shortcut(self.ff(self.norm2(x)))


class DummyTransformerBlock(nn.Module):
    def __init__(self, cfg: Config) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class DummyLayerNorm(nn.Module):
    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


class GPTModel(nn.Module):
    """A GPT with its block and norm as attributes, so that `DummyGPTModel` differs only there."""

    block: type[nn.Module] = TransformerBlock
    norm: type[nn.Module] = LayerNorm

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.pos_emb = nn.Embedding(cfg["context_length"], cfg["emb_dim"])
        self.drop_emb = nn.Dropout(cfg["drop_rate"])
        self.trf_blocks = nn.Sequential(*(self.block(cfg) for _ in range(cfg["n_layers"])))
        self.final_norm = self.norm(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)

    def forward(self, in_idx: Tensor) -> Tensor:
        x = token_and_position_embedding(self.tok_emb, self.pos_emb, in_idx)
        x = self.trf_blocks(self.drop_emb(x))
        return self.out_head(self.final_norm(x))


class DummyGPTModel(GPTModel):
    block = DummyTransformerBlock
    norm = DummyLayerNorm


def generate_text_simple(
    model: nn.Module, idx: Tensor, max_new_tokens: int, context_size: int
) -> Tensor:
    """Append the most probable token repeatedly, reading at most `context_size` tokens."""
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(idx[:, -context_size:])[:, -1]
        idx = torch.cat((idx, logits.argmax(dim=-1, keepdim=True)), dim=1)
    return idx
