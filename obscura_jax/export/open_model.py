"""Open a model to generate with: from files, over a mesh, or exported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from obscura_jax.decoding.programs import DEFAULT_PROGRAMS, GenerationPrograms
from obscura_jax.export.artifact import load_artifact
from obscura_jax.interop.checkpoint import read_checkpoint
from obscura_jax.interop.locate import is_exported
from obscura_jax.interop.tokens import TokenRecord, tokens_at
from obscura_jax.nn.dtypes import cast_params
from obscura_jax.nn.model import GPTModel


@dataclass(frozen=True)
class OpenModel:
    """A model and what runs it.

    Attributes:
        model: the model.
        params: its parameters, or the weights of an exported model.
        programs: the programs to generate with.
        tokens: its special tokens and tokenizer.
    """

    model: GPTModel
    params: Any
    programs: GenerationPrograms
    tokens: TokenRecord


def open_model(
    source: str,
    *,
    n_heads: int | None = None,
    entry: str | None = None,
    dtype: str | None = None,
    mesh: str | None = None,
) -> OpenModel:
    """Open the model at `source`.

    Args:
        source: as in `load_model`, or the folder of an exported model, for which the other
            arguments have no effect.
        n_heads: as in `load_model`.
        entry: as in `load_model`.
        dtype: the type of the parameters; by default their own.
        mesh: sizes of a mesh of all devices, such as "data=4,model=2"; by default one device.

    Raises:
        ValueError: for a model that cannot be read, or a mesh that does not fit it.
    """
    if is_exported(source):
        return OpenModel(*load_artifact(source), tokens_at(Path(source)))
    if mesh is None:
        model, params, tokens = _read(source, n_heads, entry, dtype)
        return OpenModel(model, params, DEFAULT_PROGRAMS, tokens)
    from obscura_jax.scale.generation import mesh_programs
    from obscura_jax.scale.mesh import check_model, make_mesh, parse_mesh, place
    from obscura_jax.training.placement import host_device

    devices = make_mesh(parse_mesh(mesh))
    with jax.default_device(host_device()):  # the model may be too large for one device
        model, params, tokens = _read(source, n_heads, entry, dtype)
    check_model(model.cfg, devices)
    return OpenModel(model, place(devices, params), mesh_programs(devices), tokens)


def _read(
    source: str, n_heads: int | None, entry: str | None, dtype: str | None
) -> tuple[GPTModel, Any, TokenRecord]:
    checkpoint = read_checkpoint(source, n_heads=n_heads, entry=entry)
    return GPTModel(checkpoint.cfg), cast_params(checkpoint.params, dtype), checkpoint.tokens
