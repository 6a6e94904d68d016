"""PyTorch models with the course's names and unusual behavior or constants, as in a user's file."""

import sys
from types import SimpleNamespace

import torch
from torch import nn

from obscura_jax.parity.gpt import torch_reference as reference
from tests.support.faults import Attention, with_attention


class ExitsWhenBuilt(reference.GPTModel):
    def __init__(self, cfg):
        sys.exit(0)


class ExitsWhenRun(reference.GPTModel):
    def forward(self, ids):
        sys.exit(0)


class ExitsInBackward(reference.GPTModel):
    def forward(self, ids):
        logits = super().forward(ids)
        if logits.requires_grad:
            logits.register_hook(lambda _: sys.exit(0))
        return logits


class ExitsWhenListed(reference.GPTModel):
    def named_parameters(self, *words, **more):
        sys.exit(0)


class Bare(reference.GPTModel):
    def forward(self, ids):
        raise BaseException


class Noise(reference.GPTModel):
    def forward(self, ids):
        return super().forward(ids) + 1e-7 * torch.rand(17)


class AlwaysDrops(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.drop_emb.forward = lambda x: nn.functional.dropout(x, 0.1)


class NoisyGradient(reference.GPTModel):
    def forward(self, ids):
        logits = super().forward(ids)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: gradient + torch.rand_like(gradient))
        return logits


class Drifts(reference.GPTModel):
    calls = 0

    def forward(self, ids):
        self.calls += 1
        return super().forward(ids) * (1 + 1e-6 * self.calls)


class DrawsInVain(reference.GPTModel):
    def forward(self, ids):
        torch.rand(3)
        return super().forward(ids)


class WithLoss(reference.GPTModel):
    def forward(self, ids):
        return super().forward(ids), None


class AsDictionary(reference.GPTModel):
    def forward(self, ids):
        return {"loss": torch.tensor(0.0), "logits": super().forward(ids)}


class AsObject(reference.GPTModel):
    def forward(self, ids):
        return SimpleNamespace(loss=None, logits=super().forward(ids))


class Hidden(reference.GPTModel):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.out_head.forward = lambda x: x


class LastOnly(reference.GPTModel):
    def forward(self, ids):
        return super().forward(ids)[:, -1:]


class LossFirst(reference.GPTModel):
    def forward(self, ids):
        return torch.tensor(0.5), super().forward(ids)


class Silent(reference.GPTModel):
    def forward(self, ids):
        super().forward(ids)


class ScalesQueries(reference.MultiHeadAttention):
    """Queries are divided instead of scores, which gives the same weights up to rounding."""

    def forward(self, x):
        queries, keys, values = (
            part(x).unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)
            for part in (self.W_query, self.W_key, self.W_value)
        )
        queries = queries / queries.shape[-1] ** 0.5
        scores = queries @ keys.mT
        scores = scores.masked_fill(self.mask[: x.shape[1], : x.shape[1]].bool(), -torch.inf)
        context = self.dropout(torch.softmax(scores, dim=-1)) @ values
        return self.out_proj(context.transpose(-3, -2).flatten(-2))


class ScaledByLayer(Attention):
    number = 0
    power = 1.0

    def scale(self, scores):
        return super().scale(scores) / (self.number + 1) ** self.power


class ScaledByRoot(ScaledByLayer):
    power = 0.5


class ScaledByWidth(Attention):
    def scale(self, scores):
        return scores / self.W_query.out_features**0.5


class PerLayer(with_attention(ScaledByLayer)):
    def __init__(self, cfg):
        super().__init__(cfg)
        for number, block in enumerate(self.trf_blocks):
            block.att.number = number


class PerLayerRoot(PerLayer):
    def __init__(self, cfg):
        super().__init__(cfg)
        for block in self.trf_blocks:
            block.att.__class__ = ScaledByRoot


QueriesScaled = with_attention(ScalesQueries)
WholeWidth = with_attention(ScaledByWidth)


def tanh_gelu(x, root, cubed=0.044715):
    return x * (torch.tanh(root * (x + cubed * x * x * x)) + 1) / 2


class Rounded(nn.Module):
    """The tanh form of GELU with a float32 tensor as its constant."""

    def forward(self, x):
        return tanh_gelu(x, self.root())

    def root(self):
        return torch.tensor(2.0 / torch.pi).sqrt()


class Kept(Rounded):
    """The constant is a buffer, created with the module."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.tensor((2 / torch.pi) ** 0.5), persistent=False)

    def root(self):
        return self.kept


class FromIntegers(Rounded):
    def root(self):
        return torch.sqrt(torch.tensor(2).float() / torch.tensor(torch.pi, dtype=torch.float32))


class NearlyPi(Rounded):
    """The constant has an error of 2e-8, about the size of float32 rounding."""

    def root(self):
        return torch.tensor(2.0 / 3.1415925).sqrt()


class OtherCube(Rounded):
    def forward(self, x):
        return tanh_gelu(x, self.root(), torch.tensor(0.0447151))


class InFloat32(Rounded):
    """The constant is correct, but the computation is rounded to float32."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class Digits(Rounded):
    def root(self):
        return 0.79788456


class ExactForm(Rounded):
    def forward(self, x):
        return x * (torch.tensor(0.5) + torch.erf(x * torch.tensor(0.5).sqrt()) / 2)


def with_gelu(gelu):
    class Model(reference.GPTModel):
        def __init__(self, cfg):
            super().__init__(cfg)
            for block in self.trf_blocks:
                block.ff.layers[1] = gelu()

    return Model


RoundedGelu, KeptGelu, IntegerGelu = map(with_gelu, (Rounded, Kept, FromIntegers))
NearlyPiGelu, OtherCubeGelu, Float32Gelu = map(with_gelu, (NearlyPi, OtherCube, InFloat32))
DigitsGelu, ExactFormGelu = map(with_gelu, (Digits, ExactForm))


class NotANumber(reference.GPTModel):
    """Correct in float64, but NaN in float32."""

    def forward(self, ids):
        logits = super().forward(ids)
        return logits * torch.nan if logits.dtype == torch.float32 else logits


class Shy(reference.GPTModel):
    """Different, but it fails if a mode sees its operations."""

    def forward(self, ids):
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("observed")
        return 2 * super().forward(ids)


class Nudged(reference.GPTModel):
    def forward(self, ids):
        return super().forward(ids) + 0.5  # nudged


class WrongGradient(IntegerGelu):
    """The constant is rounded to float32, and a bias receives no gradient."""

    def __init__(self, cfg):
        super().__init__(cfg)
        layer = self.trf_blocks[1].ff.layers[2]
        layer.forward = lambda x: nn.functional.linear(x, layer.weight, layer.bias.detach())
