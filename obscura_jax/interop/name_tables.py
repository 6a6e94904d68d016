"""Name tables: the course's name of every parameter, and its name in each dialect of GPT-2.

A table is total: a model's parameters are exactly those of its rows, with {} replaced by the number
of each block. `to_course.to_course_names` reads a dialect by its table, `to_dialect` writes it.
Both only rename, split, stack and transpose; no number changes.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig

Tensors = Mapping[str, NDArray[Any]]
TOKEN_TABLE, HEAD = "tok_emb.weight", "out_head.weight"  # the course's names


@dataclass(frozen=True)
class Row:
    """A tensor of a dialect and the parameters in it.

    Attributes:
        native: the course's name; {} is the block number. A name with * is three parameters,
            "query", "key" and "value", which the tensor has one below the other.
        foreign: the dialect's name, without a common prefix.
        transposed: whether the dialect stores the matrix as (in, out); the course has (out, in).
    """

    native: str
    foreign: str
    transposed: bool = False

    @property
    def targets(self) -> tuple[str, ...]:
        """The parameters in the tensor, in order."""
        parts = ("query", "key", "value") if "*" in self.native else ("",)
        return tuple(self.native.replace("*", part) for part in parts)

    @property
    def is_bias(self) -> bool:
        """True if the dialect calls the tensor a bias."""
        return self.foreign.endswith(".bias")

    @property
    def is_qkv_bias(self) -> bool:
        """True for a bias of queries, keys and values, which some models lack."""
        return self.is_bias and ".att.W_" in self.native


@dataclass(frozen=True)
class Table:
    """A dialect.

    Attributes:
        name: a short name, as `obscura info` prints it.
        rows: the token table first, the position table second, the output head last.
        masks: buffers of some versions, which hold no parameter, and a function that tells whether
            a tensor is the mask of a model with this context length.
        prefix: precedes every written name but the head's.
        tied_by_default: whether a head that is absent or equal to the token table is tied to it
            unless a config says otherwise.
        stores_tied_head: whether a tied head is written.
        biases_optional: whether a model without any bias is read as one whose biases are 0, and
            biases of queries, keys and values that are 0 may be dropped.
    """

    name: str
    rows: tuple[Row, ...]
    masks: Mapping[str, Callable[[NDArray[Any], int], bool]] = field(default_factory=dict)
    prefix: str = "transformer."
    tied_by_default: bool = True
    stores_tied_head: bool = False
    biases_optional: bool = True

    @property
    def head(self) -> Row:
        """The row of the output head, which a tied model may lack."""
        return self.rows[-1]

    def numbered(self, n_layers: int) -> list[Row]:
        """Return the rows of a model with this many blocks, numbers in place of {}."""
        return [
            Row(row.native.format(n), row.foreign.format(n), row.transposed)
            for row in self.rows
            for n in range(n_layers if "{}" in row.foreign else 1)
        ]


def _marks_future(mask: NDArray[Any], context_length: int) -> bool:
    """Tell whether a mask is nonzero above the diagonal only."""
    shape = (context_length, context_length)
    return mask.shape == shape and np.array_equal(mask != 0, np.triu(np.ones(shape, bool), k=1))


def _marks_past(mask: NDArray[Any], context_length: int) -> bool:
    """Tell whether a mask of any size is nonzero on and below the diagonal only."""
    if mask.ndim < 2 or mask.shape[:-2] not in ((1, 1), ()) or mask.shape[-1] != mask.shape[-2]:
        return False
    return np.array_equal(mask.reshape(mask.shape[-2:]) != 0, np.tri(mask.shape[-1], dtype=bool))


def _is_one_number(mask: NDArray[Any], context_length: int) -> bool:
    return mask.size == 1


_GPT2_MASKS = {"h.{}.attn.bias": _marks_past, "h.{}.attn.masked_bias": _is_one_number}
_TRANSPOSED = True

# fmt: off
HUGGING_FACE = Table("hf", (
    # the course's name                       Hugging Face's name          stored as (in, out)
    Row("tok_emb.weight",                     "wte.weight"),
    Row("pos_emb.weight",                     "wpe.weight"),
    Row("trf_blocks.{}.norm1.scale",          "h.{}.ln_1.weight"),
    Row("trf_blocks.{}.norm1.shift",          "h.{}.ln_1.bias"),
    Row("trf_blocks.{}.att.W_*.weight",       "h.{}.attn.c_attn.weight",   _TRANSPOSED),
    Row("trf_blocks.{}.att.W_*.bias",         "h.{}.attn.c_attn.bias"),
    Row("trf_blocks.{}.att.out_proj.weight",  "h.{}.attn.c_proj.weight",   _TRANSPOSED),
    Row("trf_blocks.{}.att.out_proj.bias",    "h.{}.attn.c_proj.bias"),
    Row("trf_blocks.{}.norm2.scale",          "h.{}.ln_2.weight"),
    Row("trf_blocks.{}.norm2.shift",          "h.{}.ln_2.bias"),
    Row("trf_blocks.{}.ff.layers.0.weight",   "h.{}.mlp.c_fc.weight",      _TRANSPOSED),
    Row("trf_blocks.{}.ff.layers.0.bias",     "h.{}.mlp.c_fc.bias"),
    Row("trf_blocks.{}.ff.layers.2.weight",   "h.{}.mlp.c_proj.weight",    _TRANSPOSED),
    Row("trf_blocks.{}.ff.layers.2.bias",     "h.{}.mlp.c_proj.bias"),
    Row("final_norm.scale",                   "ln_f.weight"),
    Row("final_norm.shift",                   "ln_f.bias"),
    Row("out_head.weight",                    "lm_head.weight"),
), _GPT2_MASKS)

FLAX = Table("flax", (
    # the course's name                       transformers' Flax GPT-2     stored as (in, out)
    Row("tok_emb.weight",                     "wte.embedding"),
    Row("pos_emb.weight",                     "wpe.embedding"),
    Row("trf_blocks.{}.norm1.scale",          "h.{}.ln_1.scale"),
    Row("trf_blocks.{}.norm1.shift",          "h.{}.ln_1.bias"),
    Row("trf_blocks.{}.att.W_*.weight",       "h.{}.attn.c_attn.kernel"),
    Row("trf_blocks.{}.att.W_*.bias",         "h.{}.attn.c_attn.bias"),
    Row("trf_blocks.{}.att.out_proj.weight",  "h.{}.attn.c_proj.kernel"),
    Row("trf_blocks.{}.att.out_proj.bias",    "h.{}.attn.c_proj.bias"),
    Row("trf_blocks.{}.norm2.scale",          "h.{}.ln_2.scale"),
    Row("trf_blocks.{}.norm2.shift",          "h.{}.ln_2.bias"),
    Row("trf_blocks.{}.ff.layers.0.weight",   "h.{}.mlp.c_fc.kernel"),
    Row("trf_blocks.{}.ff.layers.0.bias",     "h.{}.mlp.c_fc.bias"),
    Row("trf_blocks.{}.ff.layers.2.weight",   "h.{}.mlp.c_proj.kernel"),
    Row("trf_blocks.{}.ff.layers.2.bias",     "h.{}.mlp.c_proj.bias"),
    Row("final_norm.scale",                   "ln_f.scale"),
    Row("final_norm.shift",                   "ln_f.bias"),
    Row("out_head.weight",                    "lm_head.kernel",            _TRANSPOSED),
), _GPT2_MASKS)
# fmt: on

# nanoGPT has Hugging Face's names, with every matrix as (out, in).
NANOGPT = Table(
    "nanogpt",
    tuple(Row(row.native, row.foreign) for row in HUGGING_FACE.rows),
    _GPT2_MASKS,
    stores_tied_head=True,
)
# In the course every parameter has a tensor and a name of its own.
COURSE = Table(
    "course",
    tuple(Row(name, name) for row in HUGGING_FACE.rows for name in row.targets),
    {"trf_blocks.{}.att.mask": _marks_future},
    prefix="",
    tied_by_default=False,
    stores_tied_head=True,
    biases_optional=False,
)


def to_dialect(table: Table, cfg: GPTConfig, params: Tensors) -> dict[str, NDArray[Any]]:
    """Return the tensors of a model as a file of the dialect has them.

    Args:
        table: the dialect.
        cfg: the model's config.
        params: its parameters by the course's names. Missing biases of queries, keys and values are
            written as zeros if the dialect has no models without them.
    """
    tensors: dict[str, NDArray[Any]] = {}
    no_bias = np.zeros_like(params["final_norm.scale"])
    for row in table.numbered(cfg.n_layers):
        targets = row.targets
        if row.native == HEAD and cfg.tie_weights:
            if not table.stores_tied_head:
                continue
            targets = (TOKEN_TABLE,)
        if targets[0] not in params and not table.biases_optional:
            continue
        parts = [params.get(name, no_bias) for name in targets]
        tensor = np.concatenate(parts) if len(parts) > 1 else parts[0]
        prefix = "" if row.native == HEAD else table.prefix
        tensors[prefix + row.foreign] = np.ascontiguousarray(tensor.T) if row.transposed else tensor
    return tensors


def summarize_names(names: Iterable[str]) -> str:
    """Return the first name in alphabetical order, and how many more there are."""
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
