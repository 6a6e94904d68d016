"""A decoder with RMSNorm, rotary positions, grouped queries and SwiGLU, in PyTorch."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

VOCABULARY, WIDTH, HIDDEN, LAYERS = 29, 48, 56, 3
HEADS, KEY_HEADS, HEAD_WIDTH = 6, 2, 8


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        mean_square = x.pow(2).mean(-1, keepdim=True)
        inverse = torch.rsqrt(mean_square + self.eps)
        normalized = x * inverse
        return normalized * self.weight


def rotary_tables(length, width, dtype, base=10000.0):
    """Return cosines and sines of shape (length, width), each half the same."""
    exponents = torch.arange(0, width, 2, dtype=dtype) / width
    frequencies = 1.0 / base**exponents
    angles = torch.outer(torch.arange(length, dtype=dtype), frequencies)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rotate(x, cos, sin):
    return x * cos + rotate_half(x) * sin


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * HEAD_WIDTH, bias=False)
        self.key = nn.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, bias=False)
        self.value = nn.Linear(WIDTH, KEY_HEADS * HEAD_WIDTH, bias=False)
        self.output = nn.Linear(HEADS * HEAD_WIDTH, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        batch, length, _ = x.shape
        query = self.query(x).view(batch, length, HEADS, HEAD_WIDTH).transpose(1, 2)
        key = self.key(x).view(batch, length, KEY_HEADS, HEAD_WIDTH).transpose(1, 2)
        value = self.value(x).view(batch, length, KEY_HEADS, HEAD_WIDTH).transpose(1, 2)
        query = rotate(query, cos, sin)
        key = rotate(key, cos, sin)
        key = key.repeat_interleave(HEADS // KEY_HEADS, dim=1)
        value = value.repeat_interleave(HEADS // KEY_HEADS, dim=1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        merged = mixed.transpose(1, 2).reshape(batch, length, WIDTH)
        return self.output(merged)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        gate = self.gate(x)
        up = self.up(x)
        opened = F.silu(gate)
        hidden = opened * up
        return self.down(hidden)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention_norm = RMSNorm(WIDTH)
        self.attention = Attention()
        self.mlp_norm = RMSNorm(WIDTH)
        self.mlp = MLP()

    def forward(self, x, cos, sin):
        normed = self.attention_norm(x)
        x = x + self.attention(normed, cos, sin)
        normed = self.mlp_norm(x)
        return x + self.mlp(normed)


class Decoder(nn.Module):
    """Return logits (batch, length, vocabulary) of tokens (batch, length); the head is tied."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH)

    def forward(self, tokens):
        x = self.embed(tokens)
        cos, sin = rotary_tables(tokens.shape[1], HEAD_WIDTH, x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        x = self.norm(x)
        return F.linear(x, self.embed.weight)


def build(seed):
    """Return the module and its inputs."""
    torch.manual_seed(seed)
    model = Decoder().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)).add_(0.05 * torch.randn_like(p))
    return model, (torch.randint(VOCABULARY, (5, 7)),)
