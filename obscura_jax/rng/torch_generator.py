"""PyTorch's CPU random numbers in NumPy: the course's initial weights from its seed.

For float32 on the CPU, torch draws all numbers from one MT19937 stream. A uniform number uses the
low 24 bits of a word. Normal numbers are drawn by Box-Muller. Tensors of at least 16 elements are
filled in blocks of 16 (8 radii, then 8 angles); if the last block is partial, the last 16 elements
are drawn again. Smaller tensors are filled in pairs, in double precision.
"""

import math
import operator
from collections.abc import Mapping
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig

Floats = NDArray[np.float32]
_CHUNK = 1 << 16  # words per step, so that temporaries stay in cache; a multiple of 16


class TorchGenerator:
    """The state of torch's CPU generator after `torch.manual_seed(seed)`; each draw advances it.

    Uniform numbers equal torch's bit for bit if torch's kernel fuses multiply and add (x86-64 with
    FMA), and otherwise within one unit in the last place. Normal numbers are within 1e-6 (measured:
    7.2e-7 over 80 million), because torch's vectorized log, sine and cosine round differently.
    """

    def __init__(self, seed: SupportsIndex) -> None:
        try:
            number = operator.index(seed)
        except TypeError:
            number = 2**64
        if not -(2**63) <= number < 2**64:
            raise ValueError(f"a torch seed must be a 64-bit integer, got {seed!r}")
        self._stream = np.random.RandomState(number & 0xFFFFFFFF)  # the low 32 bits, like torch
        self._spare_normal: float | None = None

    def _words(self, count: int) -> NDArray[np.uint32]:
        return np.frombuffer(self._stream.bytes(4 * count), dtype="<u4")

    def _unit(self, count: int) -> Floats:
        return (self._words(count) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Floats:
        """Return `torch.empty(shape).uniform_(low, high)`; by default `torch.rand(shape)`."""
        out = np.empty(math.prod(shape), np.float32)
        start, width = np.float64(np.float32(low)), np.float64(np.float32(high) - np.float32(low))
        for at in range(0, out.size, _CHUNK):
            part = out[at : at + _CHUNK]
            bits = self._words(part.size) & 0xFFFFFF
            part[:] = bits * (width * 2**-24) + start  # rounded once, as a fused kernel does
        return out.reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> Floats:
        """Return `torch.empty(shape).normal_()`."""
        size = math.prod(shape)
        if size < 16:
            return np.array([self._one_normal() for _ in range(size)], np.float32).reshape(shape)
        out = np.empty(size, np.float32)
        for at in range(0, size, _CHUNK):
            part = out[at : at + _CHUNK]
            uniforms = self._unit(part.size)
            full = part.size - part.size % 16
            part[:full] = _box_muller(uniforms[:full])
        if size % 16:
            out[-16:] = _box_muller(self._unit(16))
        return out.reshape(shape)

    def _one_normal(self) -> float:
        if self._spare_normal is not None:
            value, self._spare_normal = self._spare_normal, None
            return value
        angle, radius = self._unit_double(), self._unit_double()
        radius, angle = math.sqrt(-2 * math.log1p(-radius)), 2 * math.pi * angle
        self._spare_normal = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _unit_double(self) -> float:
        high, low = (int(word) for word in self._words(2))
        return ((high << 32 | low) & (1 << 53) - 1) * 2.0**-53

    def linear(self, d_in: int, d_out: int, *, bias: bool = True) -> dict[str, Floats]:
        """Return the parameters of a new `torch.nn.Linear(d_in, d_out, bias)`."""
        gain = math.sqrt(2 / (1 + math.sqrt(5) ** 2))  # kaiming_uniform_ with a = sqrt(5)
        bound = math.sqrt(3) * (gain / math.sqrt(d_in))
        params = {"weight": self.uniform((d_out, d_in), -bound, bound)}
        if bias:
            bound = 1 / math.sqrt(d_in)
            params["bias"] = self.uniform((d_out,), -bound, bound)
        return params

    def embedding(self, num_embeddings: int, embedding_dim: int) -> dict[str, Floats]:
        """Return the parameters of a new `torch.nn.Embedding(num_embeddings, embedding_dim)`."""
        return {"weight": self.normal((num_embeddings, embedding_dim))}


def _box_muller(uniforms: Floats) -> Floats:
    """Turn uniform numbers into as many normal ones, in blocks of 16: 8 radii, then 8 angles."""
    u = uniforms.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - u[:, 0]))
    angle = np.float32(2 * math.pi) * u[:, 1]
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1).reshape(-1)


def torch_seed_init(cfg: GPTConfig | Mapping[str, Any], seed: SupportsIndex) -> dict[str, Any]:
    """Return the parameters of the course's `GPTModel(cfg)` after `torch.manual_seed(seed)`.

    The tree is that of `GPTModel(cfg).init(...)["params"]`, in float32; 124M takes seconds.
    Parameters are drawn in the order in which the course's constructors create them. Raises
    ValueError for a bad config or a seed beyond 64 bits.
    """
    cfg = GPTConfig.of(cfg)
    generator = TorchGenerator(seed)
    d = cfg.emb_dim

    def norm() -> dict[str, Floats]:
        return {"scale": np.ones(d, np.float32), "shift": np.zeros(d, np.float32)}

    def block() -> dict[str, Any]:
        projections = ("W_query", "W_key", "W_value")
        att = {name: generator.linear(d, d, bias=cfg.qkv_bias) for name in projections}
        att["out_proj"] = generator.linear(d, d)
        layers = {"0": generator.linear(d, 4 * d), "2": generator.linear(4 * d, d)}
        return {"att": att, "ff": {"layers": layers}, "norm1": norm(), "norm2": norm()}

    params = {
        "tok_emb": generator.embedding(cfg.vocab_size, d),
        "pos_emb": generator.embedding(cfg.context_length, d),
        "trf_blocks": {str(n): block() for n in range(cfg.n_layers)},
        "final_norm": norm(),
    }
    if not cfg.tie_weights:
        params["out_head"] = generator.linear(d, cfg.vocab_size, bias=False)
    return jax.tree.map(jnp.asarray, params)
