"""A from-scratch GPT, ported from PyTorch to pure functions in JAX and Flax, component by component.

Names are imported when first used, so that `import obscura_jax.text` needs no jax.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from obscura_jax.config import GPT_CONFIG_124M, GPTConfig
    from obscura_jax.decoding.loop import generate_text_simple
    from obscura_jax.interop.files import load_model, save_model
    from obscura_jax.nn.attention import CausalAttention, MultiHeadAttention
    from obscura_jax.nn.layers import GELU, FeedForward, LayerNorm
    from obscura_jax.nn.model import GPTModel, TransformerBlock
    from obscura_jax.nn.stepping_stones import (
        DummyGPTModel,
        DummyLayerNorm,
        DummyTransformerBlock,
        ExampleDeepNeuralNetwork,
        MultiHeadAttentionWrapper,
        SelfAttention_v1,
        SelfAttention_v2,
    )
    from obscura_jax.text.dataset import GPTDatasetV1, create_dataloader_v1
    from obscura_jax.text.tokenizers import (
        SimpleTokenizerV1,
        SimpleTokenizerV2,
        build_vocab,
        gpt2_tokenizer,
        split_text,
    )

_HOMES = {
    "config": ("GPT_CONFIG_124M", "GPTConfig"),
    "decoding.loop": ("generate_text_simple",),
    "interop.files": ("load_model", "save_model"),
    "nn.attention": ("CausalAttention", "MultiHeadAttention"),
    "nn.layers": ("GELU", "FeedForward", "LayerNorm"),
    "nn.model": ("GPTModel", "TransformerBlock"),
    "nn.stepping_stones": (
        "DummyGPTModel",
        "DummyLayerNorm",
        "DummyTransformerBlock",
        "ExampleDeepNeuralNetwork",
        "MultiHeadAttentionWrapper",
        "SelfAttention_v1",
        "SelfAttention_v2",
    ),
    "text.dataset": ("GPTDatasetV1", "create_dataloader_v1"),
    "text.tokenizers": (
        "SimpleTokenizerV1",
        "SimpleTokenizerV2",
        "build_vocab",
        "gpt2_tokenizer",
        "split_text",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
