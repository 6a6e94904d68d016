"""A decoder with mixtures of experts in all layers but the first, in PyTorch."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

VOCABULARY, WIDTH, LAYERS, LONGEST, WINDOW = 23, 36, 3, 16, 4
HEADS, HEAD_WIDTH = 4, 9
DENSE_HIDDEN, EXPERTS, CHOSEN, HIDDEN = 44, 6, 2, 20
ROUTED_SCALE, CAP = 1.5, 8.0


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.joint = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, visible):
        batch, length, _ = x.shape
        joint = self.joint(x)
        joint = joint.view(batch, length, 3, HEADS, HEAD_WIDTH)
        query, key, value = joint.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(-2, -1)
        scores = scores * HEAD_WIDTH**-0.5
        scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
        weights = scores.softmax(dim=-1)
        mixed = self.dropout(weights) @ value
        mixed = mixed.transpose(1, 2).reshape(batch, length, WIDTH)
        return self.output(mixed)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, DENSE_HIDDEN)
        self.act = nn.GELU(approximate="tanh")
        self.down = nn.Linear(DENSE_HIDDEN, WIDTH)

    def forward(self, x):
        h = self.up(x)
        h = self.act(h)
        return self.down(h)


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up = nn.Linear(WIDTH, 2 * HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        opened = F.silu(gate)
        return self.down(opened * up)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))
        self.shared_gate = nn.Linear(WIDTH, 1, bias=False)
        self.shared = Expert()

    def forward(self, x):
        logits = self.router(x)
        highest, chosen = logits.topk(CHOSEN, dim=-1)
        shares = highest.softmax(dim=-1)
        routed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (shares * (chosen == i)).sum(dim=-1, keepdim=True)
            routed = routed + share * expert(x)
        routed = routed * ROUTED_SCALE
        openness = torch.sigmoid(self.shared_gate(x))
        shared = openness * self.shared(x)
        return routed + shared


class Layer(nn.Module):
    def __init__(self, mixture):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = Mixture() if mixture else Dense()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x, visible):
        h = self.norm1(x)
        h = self.attention(h, visible)
        x = x + self.dropout(h)
        h = self.norm2(x)
        h = self.mlp(h)
        return x + self.dropout(h)


class Decoder(nn.Module):
    """Return logits (batch, length, vocabulary) of tokens (batch, length)."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(LONGEST, WIDTH)
        self.layers = nn.ModuleList(Layer(mixture=i > 0) for i in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens):
        steps = torch.arange(tokens.shape[1])
        x = self.embed(tokens)
        x = x + self.positions(steps)
        distance = steps[:, None] - steps[None, :]
        visible = (distance >= 0) & (distance < WINDOW)
        for layer in self.layers:
            x = layer(x, visible)
        x = self.norm(x)
        logits = self.head(x)
        return CAP * torch.tanh(logits / CAP)


def build(seed):
    """Return the module and its inputs."""
    torch.manual_seed(seed)
    model = Decoder().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)).add_(0.05 * torch.randn_like(p))
    return model, (torch.randint(VOCABULARY, (5, 11)),)
