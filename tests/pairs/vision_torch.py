"""A vision transformer with a convolutional stem, in PyTorch."""

import torch
from torch import nn

CHANNELS, STEM, WIDTH, HIDDEN, HEADS, LAYERS, CLASSES = 3, 12, 40, 56, 4, 2, 11
HEIGHT, BREADTH, PATCH = 16, 24, 4  # the stem halves the image: 2 by 3 patches
PATCHES = (HEIGHT // 2 // PATCH) * (BREADTH // 2 // PATCH)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, dropout=0.1, batch_first=True)
        self.scale1 = nn.Parameter(torch.ones(WIDTH))
        self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.act = nn.GELU()
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.scale2 = nn.Parameter(torch.ones(WIDTH))
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        h = self.norm1(x)
        h, _ = self.attention(h, h, h, need_weights=False)
        h = h * self.scale1
        x = x + self.dropout(h)
        h = self.norm2(x)
        h = self.up(h)
        h = self.act(h)
        h = self.down(h)
        h = h * self.scale2
        return x + self.dropout(h)


class VisionTransformer(nn.Module):
    """Return logits (batch, classes) of images (batch, channels, height, breadth)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, STEM, 3, stride=2, padding=1)
        self.patches = nn.Conv2d(STEM, WIDTH, PATCH, stride=PATCH)
        self.class_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.positions = nn.Parameter(0.2 * torch.randn(1, PATCHES + 1, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, images):
        x = self.stem(images)
        x = nn.functional.gelu(x)
        x = self.patches(x)
        x = x.flatten(2).transpose(1, 2)
        token = self.class_token.expand(x.shape[0], -1, -1)
        x = torch.cat([token, x], dim=1)
        x = x + self.positions
        x = self.blocks(x)
        x = self.norm(x)
        pooled = x[:, 1:].mean(dim=1)
        features = torch.cat([x[:, 0], pooled], dim=-1)
        return self.head(features)


def build(seed):
    """Return the module and its inputs."""
    torch.manual_seed(seed)
    model = VisionTransformer().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1 + 0.3 * torch.randn_like(p)).add_(0.05 * torch.randn_like(p))
    return model, (torch.randn(5, CHANNELS, HEIGHT, BREADTH),)
