"""Named tensors of any dialect -> a config, a parameter tree and a record of the conversion."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy.typing import NDArray

from obscura_jax.config import PRESETS, GPTConfig
from obscura_jax.interop.course_state import check_floating
from obscura_jax.interop.infer_config import infer_config
from obscura_jax.interop.name_tables import Tensors
from obscura_jax.interop.recognize import recognize
from obscura_jax.interop.to_course import to_course_names
from obscura_jax.interop.tokens import NO_TOKENS, TokenRecord
from obscura_jax.rng.torch_generator import torch_seed_init


@dataclass(frozen=True)
class ConversionRecord:
    """The record of one tensor's conversion: a row of the audit.

    Attributes:
        source: its name in the source, or "-" for zeros in place of an absent one.
        target: the parameters that it fills, or "-" if it was checked and dropped.
        note: what was done to it.
        values: the tensor as the source has it.
    """

    source: str
    target: str
    note: str
    values: NDArray[Any] = field(repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape in the source."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """Its type in the source."""
        return str(self.values.dtype)

    @property
    def checksum(self) -> str:
        """The first 16 digits of the SHA-256 of its bytes, row by row, in the source."""
        return hashlib.sha256(self.values.tobytes()).hexdigest()[:16]


@dataclass(frozen=True)
class LoadedModel:
    """A model as read from a source.

    Attributes:
        dialect: "native", "course", "hf", "nanogpt", "flax" or "torch-seed".
        cfg: its config.
        params: its parameter tree, float32.
        audit: what each tensor of the source became, in the source's order.
        tokens: the special tokens and tokenizer that the source has.
    """

    dialect: str
    cfg: GPTConfig
    params: dict[str, Any]
    audit: list[ConversionRecord]
    tokens: TokenRecord = NO_TOKENS


def build(
    tensors: Tensors, config_hints: Mapping[str, Any], *, allow_alias: bool = False
) -> LoadedModel:
    """Return the model whose tensors these are.

    Values keep their bits in float32, are widened from float16 and bfloat16, and rounded from
    float64.

    Args:
        tensors: a state dict of any dialect, under its own names.
        config_hints: what else is known of the config; see `infer_config`.
        allow_alias: use the memory of `tensors` if possible, instead of a copy; nobody else may
            change them then. No two parameters share memory, since a parameter may be written to.

    Raises:
        ValueError: if the tensors are not completely understood, contradict the hints, have a type
            that is not floating-point, or hold values that float32 does not: infinities, NaN, too
            large ones.
    """
    source = recognize(tensors)
    cfg = infer_config(source, config_hints)
    params: dict[str, jax.Array] = {}
    audit: list[ConversionRecord] = []
    addresses: set[int] = set()
    for found in to_course_names(source, cfg):
        notes = found.notes
        if found.parts and (size := found.values.dtype.itemsize) != 4:
            notes += ("rounded to float32" if size > 4 else "widened to float32",)
        for target, part in found.parts.items():
            check_floating(found.source, part)
            address = part.ctypes.data
            params[target] = _float32(found.source, part, allow_alias and address not in addresses)
            addresses.add(address)
        note, target = ", ".join(notes) or "as it is", ", ".join(found.parts) or "-"
        audit.append(ConversionRecord(found.source, target, note, found.values))
    return LoadedModel(source.table.name, cfg, unflatten_dict(params, sep="."), audit)


def build_from_seed(source: str, n_heads: int | None = None) -> LoadedModel:
    """Return the model of a source "torch-seed:N[:PRESET]".

    Raises:
        ValueError: if the source is malformed, or its preset has another number of heads.
    """
    match = re.fullmatch(r"torch-seed:(-?[0-9]{1,20})(?::(.+))?", source)
    if not match or (preset := match[2] or "124M") not in PRESETS:
        raise ValueError(
            f"{source[:80]!r} is not torch-seed:N or torch-seed:N:PRESET; N is a 64-bit integer, "
            f"PRESET one of {', '.join(PRESETS)}"
        )
    cfg = PRESETS[preset]
    if n_heads not in (None, cfg.n_heads):
        raise ValueError(f"{source} has n_heads={cfg.n_heads}, not {n_heads}")
    params = torch_seed_init(cfg, int(match[1]))
    audit = [
        ConversionRecord(name, name, "drawn as torch draws it", np.asarray(leaf))
        for name, leaf in flatten_dict(params, sep=".").items()
    ]
    return LoadedModel("torch-seed", cfg, params, audit)


def _float32(name: str, tensor: NDArray[Any], allow_alias: bool) -> jax.Array:
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is not finite, and refused below
        values = np.asarray(tensor, np.float32)
        # The sum of squares is a quick check: 0.02 s for the 124M model instead of isfinite's 0.2.
        finite = np.isfinite(np.vdot(values, values)) or np.isfinite(values).all()
    if not finite:
        raise ValueError(
            f"{name} holds NaN, infinite values or values too large for float32; use an "
            "earlier checkpoint"
        )
    return jax.device_put(values, may_alias=True) if allow_alias else jnp.array(values)
