"""A stack of selective state-space blocks, as in Mamba, with a tied output projection."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.pairs.perturb import perturb

VOCAB, WIDTH, INNER, STATE, RANK, KERNEL, LAYERS = 29, 24, 40, 6, 5, 4, 2


class RMSNorm(nn.Module):
    def __init__(self, width, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        mean_square = x.pow(2).mean(dim=-1, keepdim=True)
        x = x * torch.rsqrt(mean_square + self.eps)
        return self.weight * x


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj = nn.Linear(WIDTH, 2 * INNER, bias=False)
        self.conv1d = nn.Conv1d(INNER, INNER, KERNEL, groups=INNER, padding=KERNEL - 1)
        self.x_proj = nn.Linear(INNER, RANK + 2 * STATE, bias=False)
        self.dt_proj = nn.Linear(RANK, INNER)
        self.A_log = nn.Parameter(torch.arange(1.0, STATE + 1).log().repeat(INNER, 1))
        self.D = nn.Parameter(torch.ones(INNER))
        self.out_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        projected = self.in_proj(x)
        x, gate = projected.chunk(2, dim=-1)
        x = self.conv1d(x.transpose(1, 2))
        x = x[..., : projected.shape[1]].transpose(1, 2)
        x = F.silu(x)
        y = self.scan(x)
        y = y + self.D * x
        y = y * F.silu(gate)
        return self.out_proj(y)

    def scan(self, x):
        selected = self.x_proj(x)
        rates, b, c = selected.split([RANK, STATE, STATE], dim=-1)
        steps = self.dt_proj(rates)
        delta = F.softplus(steps)
        a = -torch.exp(self.A_log)
        hidden = x.new_zeros(x.shape[0], INNER, STATE)
        outputs = []
        for t in range(x.shape[1]):
            step = delta[:, t, :, None]
            decay = torch.exp(step * a)
            drive = step * b[:, t, None, :] * x[:, t, :, None]
            hidden = decay * hidden + drive
            read = hidden * c[:, t, None, :]
            outputs.append(read.sum(dim=-1))
        return torch.stack(outputs, dim=1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = RMSNorm(WIDTH)
        self.mixer = Mixer()

    def forward(self, x):
        normed = self.norm(x)
        mixed = self.mixer(normed)
        return x + mixed


class StateSpaceModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = RMSNorm(WIDTH)

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return F.linear(x, self.embedding.weight)


def build(seed):
    torch.manual_seed(seed)
    model = StateSpaceModel().eval()
    perturb(model)
    return model, (torch.randint(VOCAB, (2, 9)),)
