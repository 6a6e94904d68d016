"""A tiny BertModel of transformers, with random weights and a padded batch."""

import torch
from torch import nn
from transformers import BertConfig, BertModel

from tests.pairs.perturb import perturb

VOCAB, BATCH, LENGTH = 31, 3, 9


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        config = BertConfig(
            vocab_size=VOCAB,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=56,
            max_position_embeddings=20,
            type_vocab_size=2,
            pad_token_id=None,  # else PyTorch does not train the embedding of the padding
            attn_implementation="eager",
        )
        self.bert = BertModel(config)

    def forward(self, ids, mask, types):
        result = self.bert(input_ids=ids, attention_mask=mask, token_type_ids=types)
        return result.last_hidden_state, result.pooler_output


def build(seed):
    torch.manual_seed(seed)
    model = Bert().eval()
    perturb(model)
    ids = torch.randint(1, VOCAB, (BATCH, LENGTH))
    mask = (torch.arange(LENGTH) < torch.tensor([[9], [6], [7]])).long()
    types = (torch.arange(LENGTH) >= torch.tensor([[5], [3], [4]])).long()
    return model, (ids * mask, mask, types * mask)
