"""An encoder and a decoder with cross attention, norms after the sums, in PyTorch."""

import math

import torch
from torch import nn

SOURCE_VOCABULARY, TARGET_VOCABULARY = 31, 27
WIDTH, HEADS, HIDDEN, LAYERS, REACH, LONGEST = 32, 4, 56, 2, 5, 16


def sinusoids(length, width):
    """Return positions of shape (length, width), a sine and a cosine in turn."""
    positions = torch.arange(length).float()[:, None]
    rates = torch.exp(torch.arange(0, width, 2).float() * (-math.log(10000.0) / width))
    table = torch.zeros(length, width)
    table[:, 0::2] = torch.sin(positions * rates)
    table[:, 1::2] = torch.cos(positions * rates)
    return table


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], HEADS, -1).transpose(1, 2)

    def forward(self, x, memory, mask, bias=None):
        query = self.heads(self.query(x))
        key = self.heads(self.key(memory))
        value = self.heads(self.value(memory))
        scores = torch.matmul(query, key.transpose(-2, -1))
        scores = scores / math.sqrt(query.shape[-1])
        if bias is not None:
            scores = scores + bias
        scores = scores.masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        weights = self.dropout(weights)
        mixed = torch.matmul(weights, value)
        mixed = mixed.transpose(1, 2).flatten(2)
        return self.output(mixed)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        h = self.up(x)
        h = torch.relu(h)
        return self.down(h)


class EncoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.ff = FeedForward()
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x, mask, bias):
        h = self.attention(x, x, mask, bias)
        x = self.norm1(x + h)
        h = self.ff(x)
        return self.norm2(x + h)


class DecoderLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = Attention()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.cross = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.ff = FeedForward()
        self.norm3 = nn.LayerNorm(WIDTH)

    def forward(self, x, causal, encoded, mask):
        h = self.attention(x, x, causal)
        x = self.norm1(x + h)
        h = self.cross(x, encoded, mask)
        x = x + h
        x = self.norm2(x)
        h = self.ff(x)
        return self.norm3(x + h)


class Translator(nn.Module):
    """Return logits (batch, target, vocabulary) and the encoded source."""

    def __init__(self):
        super().__init__()
        self.source_embed = nn.Embedding(SOURCE_VOCABULARY, WIDTH)
        self.target_embed = nn.Embedding(TARGET_VOCABULARY, WIDTH)
        self.register_buffer("positions", sinusoids(LONGEST, WIDTH), persistent=False)
        self.relative = nn.Embedding(2 * REACH + 1, HEADS)
        self.encoder = nn.ModuleList(EncoderLayer() for _ in range(LAYERS))
        self.decoder = nn.ModuleList(DecoderLayer() for _ in range(LAYERS))
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(WIDTH, TARGET_VOCABULARY)

    def relative_bias(self, length):
        steps = torch.arange(length)
        distance = steps[None, :] - steps[:, None]
        bucket = distance.clamp(-REACH, REACH) + REACH
        bias = self.relative(bucket)
        return bias.permute(2, 0, 1)

    def encode(self, source, mask):
        x = self.source_embed(source)
        x = x * math.sqrt(WIDTH)
        x = x + self.positions[: source.shape[1]]
        x = self.dropout(x)
        bias = self.relative_bias(source.shape[1])
        for layer in self.encoder:
            x = layer(x, mask, bias)
        return x

    def decode(self, target, encoded, mask):
        y = self.target_embed(target)
        y = y * math.sqrt(WIDTH)
        y = y + self.positions[: target.shape[1]]
        y = self.dropout(y)
        length = target.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in self.decoder:
            y = layer(y, causal, encoded, mask)
        return self.head(y)

    def forward(self, source, target, source_mask):
        mask = source_mask[:, None, None, :]
        encoded = self.encode(source, mask)
        return {"logits": self.decode(target, encoded, mask), "encoded": encoded}


def build(seed):
    """Return the module and its inputs."""
    torch.manual_seed(seed)
    model = Translator().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)).add_(0.05 * torch.randn_like(p))
    source = torch.randint(SOURCE_VOCABULARY, (3, 9))
    target = torch.randint(TARGET_VOCABULARY, (3, 7))
    lengths = torch.tensor([9, 6, 4])
    source_mask = torch.arange(9)[None, :] < lengths[:, None]
    return model, (source, target, source_mask)
