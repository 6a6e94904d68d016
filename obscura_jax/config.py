"""Model configurations: `GPTConfig`, the course's `GPT_CONFIG_124M` and the GPT-2 family.

Number type, device and random key are never stored here; they are arguments of each run.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

from obscura_jax.checks import check_drop_rate, check_eps, check_heads, check_sizes

# The course's dictionary, chapter 4: GPT-2 small without query/key/value biases.
GPT_CONFIG_124M: dict[str, Any] = {
    "vocab_size": 50257,
    "context_length": 1024,
    "emb_dim": 768,
    "n_heads": 12,
    "n_layers": 12,
    "drop_rate": 0.1,
    "qkv_bias": False,
}


GENERATOR = "threefry2x32"  # of random numbers: JAX's default, whatever its configuration says


@dataclass(frozen=True)
class GPTConfig:
    """The sizes of a GPT model, under the course's names (chapter 4).

    Attributes:
        vocab_size: number of tokens in the vocabulary, V.
        context_length: number of positions in the position table, C; no sequence may be longer.
        emb_dim: width of the residual stream, D; divisible by `n_heads`.
        n_heads: number of attention heads per block, H.
        n_layers: number of transformer blocks.
        drop_rate: probability of dropping a value, in [0, 1); used in training only.
        qkv_bias: whether the query, key and value projections have biases.
        tie_weights: whether the output head uses the weights of the token embedding.
        ln_eps: added to the variance in every layer norm, in (0, 1).

    Raises:
        ValueError: if a field is out of range; the message names it.
    """

    vocab_size: int
    context_length: int
    emb_dim: int
    n_heads: int
    n_layers: int
    drop_rate: float
    qkv_bias: bool
    tie_weights: bool = False
    ln_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes(self, "vocab_size", "context_length", "emb_dim", "n_heads", "n_layers")
        check_heads("emb_dim", self.emb_dim, "n_heads", self.n_heads)
        object.__setattr__(self, "drop_rate", check_drop_rate("drop_rate", self.drop_rate))
        object.__setattr__(self, "ln_eps", check_eps("ln_eps", self.ln_eps))
        for name in ("qkv_bias", "tie_weights"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")

    @classmethod
    def of(cls, cfg: Self | Mapping[str, Any]) -> Self:
        """Return `cfg`, or the config that a dictionary such as `GPT_CONFIG_124M` describes."""
        if isinstance(cfg, cls):
            return cfg
        if not isinstance(cfg, Mapping):
            raise ValueError(f"cfg must be a GPTConfig or a dictionary, got {type(cfg).__name__}")
        names = {f.name for f in fields(cls)}
        if missing := sorted(names - {"tie_weights", "ln_eps"} - cfg.keys()):
            raise ValueError(f"the config lacks {', '.join(missing)}")
        if unknown := sorted(map(str, cfg.keys() - names)):
            raise ValueError(f"the config has unknown entries: {', '.join(unknown)}")
        return cls(**cfg)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a plain dictionary, in order."""
        return asdict(self)


def _gpt2(emb_dim: int, n_heads: int, n_layers: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=50257,
        context_length=1024,
        emb_dim=emb_dim,
        n_heads=n_heads,
        n_layers=n_layers,
        drop_rate=0.1,
        qkv_bias=True,
        tie_weights=True,
    )


# Radford et al. 2019, table 2; the released models have 124M, 355M, 774M and 1558M parameters.
PRESETS: dict[str, GPTConfig] = {
    "124M": GPTConfig(**GPT_CONFIG_124M),
    "gpt2": _gpt2(768, 12, 12),
    "gpt2-medium": _gpt2(1024, 16, 24),
    "gpt2-large": _gpt2(1280, 20, 36),
    "gpt2-xl": _gpt2(1600, 25, 48),
    "tiny": replace(  # the model that the package ships
        _gpt2(192, 3, 4), vocab_size=4096, context_length=256, drop_rate=0.0
    ),
}
