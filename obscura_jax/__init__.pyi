"""The public names, one by one."""

from .config import GPT_CONFIG_124M as GPT_CONFIG_124M
from .config import GPTConfig as GPTConfig
from .decoding.generate import generate as generate
from .decoding.request import GenerationOptions as GenerationOptions
from .decoding.sampling import Sampling as Sampling
from .decoding.score import score as score
from .decoding.simple import generate_text_simple as generate_text_simple
from .decoding.stream import stream as stream
from .decoding.text import stream_text as stream_text
from .interop.checkpoint import load_model as load_model
from .interop.checkpoint import save_model as save_model
from .interop.model_tokenizer import load_tokenizer as load_tokenizer
from .nn.attention import CausalAttention as CausalAttention
from .nn.attention import MultiHeadAttention as MultiHeadAttention
from .nn.layers import GELU as GELU
from .nn.layers import FeedForward as FeedForward
from .nn.layers import LayerNorm as LayerNorm
from .nn.model import GPTModel as GPTModel
from .nn.model import TransformerBlock as TransformerBlock
from .nn.stepping_stones import DummyGPTModel as DummyGPTModel
from .nn.stepping_stones import DummyLayerNorm as DummyLayerNorm
from .nn.stepping_stones import DummyTransformerBlock as DummyTransformerBlock
from .nn.stepping_stones import ExampleDeepNeuralNetwork as ExampleDeepNeuralNetwork
from .nn.stepping_stones import MultiHeadAttentionWrapper as MultiHeadAttentionWrapper
from .nn.stepping_stones import SelfAttention_v1 as SelfAttention_v1
from .nn.stepping_stones import SelfAttention_v2 as SelfAttention_v2
from .text.dataset import GPTDatasetV1 as GPTDatasetV1
from .text.loader import create_dataloader_v1 as create_dataloader_v1
from .text.tokenizers import SimpleTokenizerV1 as SimpleTokenizerV1
from .text.tokenizers import SimpleTokenizerV2 as SimpleTokenizerV2
from .text.tokenizers import build_vocab as build_vocab
from .text.tokenizers import gpt2_tokenizer as gpt2_tokenizer
from .text.tokenizers import split_text as split_text

__version__: str
