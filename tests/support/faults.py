"""PyTorch models with the course's names and one fault each, as in a user's file."""

import copy

import torch
from torch import nn

from obscura_jax.parity.gpt import torch_reference as reference


class Sound(reference.GPTModel):
    pass


class Plain(nn.Module):
    """A correct model that shares only the names: fused attention and no dropout."""

    def __init__(self, cfg):
        super().__init__()
        model = reference.GPTModel(cfg)
        self.tok_emb, self.pos_emb = model.tok_emb, model.pos_emb
        self.trf_blocks = nn.Sequential(
            *(Fused(block, cfg["n_heads"]) for block in model.trf_blocks)
        )
        self.final_norm, self.out_head = model.final_norm, model.out_head

    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        return self.out_head(self.final_norm(self.trf_blocks(x)))


class Fused(nn.Module):
    def __init__(self, block, heads):
        super().__init__()
        self.att, self.ff, self.norm1, self.norm2 = block.att, block.ff, block.norm1, block.norm2
        self.heads = heads

    def forward(self, x):
        att, y = self.att, self.norm1(x)
        q, k, v = (
            part(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (att.W_query, att.W_key, att.W_value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + att.out_proj(y.transpose(1, 2).flatten(-2))
        return x + self.ff(self.norm2(x))


class Transposed(nn.Linear):
    def forward(self, x):
        return x @ self.weight + (0 if self.bias is None else self.bias)


class TransposedMatrix(reference.GPTModel):
    """The second block's output projection, which is square, is not transposed."""

    def __init__(self, cfg):
        super().__init__(cfg)
        self.trf_blocks[1].att.out_proj = Transposed(cfg["emb_dim"], cfg["emb_dim"])


class SwappedProjections(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        att = self.trf_blocks[0].att
        att.forward = lambda x: swapped(att, x)


def swapped(att, x):
    other = copy.copy(att)
    other._modules = {**att._modules, "W_query": att.W_key, "W_key": att.W_query}
    return reference.MultiHeadAttention.forward(other, x)


class OtherEpsilon(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.trf_blocks[0].norm2.eps = 1e-6


class ExactGelu(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        for block in self.trf_blocks:
            block.ff.layers[1] = nn.GELU()


class MissingBias(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.trf_blocks[1].ff.layers[2] = nn.Linear(4 * cfg["emb_dim"], cfg["emb_dim"], bias=False)


class WrongMask(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        for block in self.trf_blocks:
            block.att.mask = torch.triu(torch.ones_like(block.att.mask), diagonal=2)


class Attention(reference.MultiHeadAttention):
    """The course's attention, with methods that subclasses replace by wrong ones."""

    def scale(self, scores):
        return scores / (self.W_query.out_features // self.num_heads) ** 0.5

    def join(self, context):
        return context.transpose(-3, -2).flatten(-2)

    def forward(self, x):
        q, k, v = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for part in (self.W_query, self.W_key, self.W_value)
        )
        scores = q @ k.transpose(2, 3)
        scores.masked_fill_(self.mask[: x.shape[1], : x.shape[1]].bool(), -torch.inf)
        weights = torch.softmax(self.scale(scores), dim=-1)
        return self.out_proj(self.join(self.dropout(weights) @ v))


def with_attention(attention):
    class Model(reference.GPTModel):
        def __init__(self, cfg):
            super().__init__(cfg)
            for block in self.trf_blocks:
                block.att.__class__ = attention

    return Model


class Unscaled(Attention):
    def scale(self, scores):
        return scores


class Unjoined(Attention):
    def join(self, context):
        return context.reshape(context.shape[0], context.shape[2], -1)


class Short(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.scale, self.shift, self.eps = norm.scale, norm.shift, norm.eps

    def forward(self, x):
        return reference.LayerNorm.forward(self, x.float()).to(x.dtype)


InPlace = with_attention(Attention)
NoScale = with_attention(Unscaled)
WrongHeads = with_attention(Unjoined)


class Float32Norm(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.final_norm = Short(self.final_norm)


class UnbiasedVariance(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.final_norm.forward = lambda x, n=self.final_norm: (
            n.scale * (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + n.eps)
            + n.shift
        )


class NoShortcut(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        block = self.trf_blocks[1]
        block.forward = lambda x: block.ff(block.norm2(x + block.att(block.norm1(x))))


class PositionsFromOne(reference.GPTModel):
    def forward(self, ids):
        x = self.tok_emb(ids) + self.pos_emb.weight.roll(-1, 0)[: ids.shape[1]]
        return self.out_head(self.final_norm(self.trf_blocks(self.drop_emb(x))))


class DetachedNorm(reference.GPTModel):
    """The forward pass is correct, but no gradient passes the first norm."""

    def __init__(self, cfg):
        super().__init__(cfg)
        norm = self.trf_blocks[0].norm1
        norm.forward = lambda x: reference.LayerNorm.forward(norm, x.detach())


class Frozen(reference.GPTModel):
    """The second block's bias is used but receives no gradient."""

    def __init__(self, cfg):
        super().__init__(cfg)
        layer = self.trf_blocks[1].ff.layers[2]
        layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias.detach())


class NoGradient(reference.GPTModel):
    @torch.no_grad()
    def forward(self, ids):
        return super().forward(ids)


class Extra(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.extra = nn.Parameter(torch.zeros(3))


class Wide(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__({**cfg, "vocab_size": cfg["vocab_size"] + 1})


class Unbuildable(nn.Module):
    def __init__(self, cfg):
        raise KeyError("n_embd")


class Failing(reference.GPTModel):
    def forward(self, ids):
        raise RuntimeError("shapes\ndo not fit")


class NoModule:
    def __init__(self, cfg):
        pass


class Nudged(reference.GPTModel):
    def forward(self, ids):
        return super().forward(ids) + 9 * nn.functional.one_hot(torch.tensor(3), 17)


class TurnedTie(reference.GPTModel):
    """In float32 two tokens are exchanged, whose logits are nearly equal in the test."""

    def forward(self, ids):
        logits = super().forward(ids)
        if logits.dtype == torch.float32:
            order = torch.arange(logits.shape[-1])
            order[3], order[5] = 5, 3
            logits = logits[..., order]
        return logits
