"""Dilated causal convolutions with gated units over frames of sound, as in WaveNet."""

import math

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from tests.pairs.perturb import perturb

BANDS, WIDTH, SKIP, CLASSES, KERNEL = 5, 24, 32, 11, 3
DILATIONS = (1, 2, 4)


class CausalConv1d(nn.Conv1d):
    def forward(self, x):
        left = (self.kernel_size[0] - 1) * self.dilation[0]
        x = F.pad(x, (left, 0))
        return super().forward(x)


class Layer(nn.Module):
    def __init__(self, dilation):
        super().__init__()
        self.norm = nn.GroupNorm(4, WIDTH)
        self.conv = CausalConv1d(WIDTH, 2 * WIDTH, KERNEL, dilation=dilation)
        self.residual = nn.Conv1d(WIDTH, WIDTH, 1)
        self.skip = nn.Conv1d(WIDTH, SKIP, 1)

    def forward(self, x):
        normed = self.norm(x)
        y = self.conv(normed)
        value, gate = y.chunk(2, dim=1)
        value = torch.tanh(value)
        gate = torch.sigmoid(gate)
        gated = value * gate
        skip = self.skip(gated)
        residual = self.residual(gated)
        total = x + residual
        return total * math.sqrt(0.5), skip


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.front = CausalConv1d(BANDS, WIDTH, KERNEL)
        self.layers = nn.ModuleList(Layer(d) for d in DILATIONS)
        self.mix = nn.Conv1d(SKIP, SKIP, 1)
        self.head = nn.Conv1d(SKIP, CLASSES, 1)

    def forward(self, frames):
        x = self.front(frames)
        skips = 0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        y = F.relu(skips)
        y = self.mix(y)
        y = F.relu(y)
        return self.head(y)


def build(seed):
    torch.manual_seed(seed)
    model = WaveNet().eval()
    perturb(model)
    return model, (torch.randn(3, BANDS, 37),)
