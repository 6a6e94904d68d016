"""A character model: a 2-layer LSTM, a GRU written by hand, and a linear head."""

import torch
from torch import nn

from tests.pairs.perturb import perturb

VOCAB, EMBEDDED, WIDTH, GRU_WIDTH = 19, 24, 32, 40


class GRUCell(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.x_proj = nn.Linear(inputs, 3 * width)
        self.h_proj = nn.Linear(width, 3 * width)

    def forward(self, x, hidden):
        x_gates = self.x_proj(x)
        h_gates = self.h_proj(hidden)
        x_reset, x_update, x_new = x_gates.chunk(3, dim=-1)
        h_reset, h_update, h_new = h_gates.chunk(3, dim=-1)
        reset = torch.sigmoid(x_reset + h_reset)
        update = torch.sigmoid(x_update + h_update)
        candidate = x_new + reset * h_new
        new = torch.tanh(candidate)
        return (1 - update) * new + update * hidden


class CharacterModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, WIDTH, num_layers=2, batch_first=True, dropout=0.1)
        self.bridge = nn.Linear(WIDTH, WIDTH)
        self.cell = GRUCell(WIDTH, GRU_WIDTH)
        self.head = nn.Linear(GRU_WIDTH, VOCAB)

    def forward(self, ids):
        x = self.embedding(ids)
        x, _ = self.lstm(x)
        x = x + self.bridge(x)
        hidden = x.new_zeros(x.shape[0], GRU_WIDTH)
        outputs = []
        for t in range(x.shape[1]):
            current = x[:, t]
            hidden = self.cell(current, hidden)
            outputs.append(hidden)
        y = torch.stack(outputs, dim=1)
        return self.head(y)


def build(seed):
    torch.manual_seed(seed)
    model = CharacterModel().eval()
    perturb(model)
    return model, (torch.randint(VOCAB, (3, 7)),)
