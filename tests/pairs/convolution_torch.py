"""A small residual network for images in the layout (batch, channels, height, width)."""

import torch
from torch import nn

from tests.pairs.perturb import perturb


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.bn_shortcut = nn.BatchNorm2d(outputs)

    def forward(self, x):
        y = self.conv1(x)
        y = self.bn1(y)
        y = self.relu(y)
        y = self.conv2(y)
        y = self.bn2(y)
        residual = x
        if self.shortcut is not None:
            residual = self.shortcut(x)
            residual = self.bn_shortcut(residual)
        total = y + residual
        return torch.relu(total)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, padding=1)
        self.bn = nn.BatchNorm2d(24)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Block(24, 24, 1), Block(24, 40, 2)])
        self.neck = nn.Linear(40, 40)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(40, 10)

    def forward(self, images):
        x = self.stem(images)
        x = self.bn(x)
        x = torch.relu(x)
        x = self.pool(x)
        for block in self.blocks:
            x = block(x)
        x = x.mean(dim=(2, 3))
        x = self.neck(x)
        x = torch.tanh(x)
        x = self.dropout(x)
        return self.head(x)


def build(seed):
    torch.manual_seed(seed)
    model = Classifier().eval()
    perturb(model)
    return model, (torch.randn(2, 3, 20, 28),)
