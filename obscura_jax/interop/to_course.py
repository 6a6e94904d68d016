"""Tensors under the names of any dialect -> parameters under the course's names."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.interop.course_state import Shapes, check_names, parameter_shapes
from obscura_jax.interop.name_tables import HEAD, Row
from obscura_jax.interop.recognize import Source


@dataclass(frozen=True)
class Provenance:
    """A tensor of a file and the parameters that come from it.

    Attributes:
        source: its name in the file, or "-" for zeros in place of a tensor that the file lacks.
        values: the tensor as the file has it.
        parts: the parameters by the course's names: views of `values`; empty if it is dropped.
        notes: what was done to it.
    """

    source: str
    values: NDArray[Any]
    parts: Mapping[str, NDArray[Any]]
    notes: tuple[str, ...]


def to_course_names(source: Source, cfg: GPTConfig) -> list[Provenance]:
    """Return the parameters of the model `cfg`, tensor by tensor in the order of the file.

    Every tensor is used once, or dropped after a check; every parameter is filled once. Biases that
    the file lacks follow at the end, as zeros, if the dialect has models without any bias.

    Raises:
        ValueError: naming, as the file does, missing or unexpected tensors, a tensor of a shape
            that the model does not have, or a mask that is not causal.
    """
    given, shapes = source.names.plain, parameter_shapes(cfg)
    rows = {row.foreign: row for row in source.table.numbered(cfg.n_layers)}
    needed = {name: row for name, row in rows.items() if row.targets[0] in shapes}
    masks = _mask_names(source, cfg)
    absent = _absent_biases(source, needed)
    dropped = dict.fromkeys(source.names.counters, "a count: dropped")
    dropped |= dict.fromkeys(masks, "causal mask: checked, dropped")
    dropped |= _redundant(source, [row for name, row in rows.items() if name not in needed])
    allowed = {given.get(name, name) for name in needed.keys() | dropped.keys()}
    required = {given.get(name, name) for name in (needed.keys() - absent) | masks}
    check_names(required, set(given.values()), allowed)
    found = []
    for name, in_file in given.items():
        values, prefix = source.tensors[in_file], source.names.prefix
        if name in needed:
            parts, notes = _parts(in_file, values, needed[name], shapes)
        else:
            parts, notes = {}, (dropped[name],)
        if prefix and in_file.startswith(prefix):
            notes = (f"prefix {prefix} removed", *notes)
        found.append(Provenance(in_file, values, parts, notes))
    for name in sorted(absent):
        (target,) = needed[name].targets
        zeros = np.zeros(shapes[target], np.float32)
        found.append(Provenance("-", zeros, {target: zeros}, ("absent: zeros",)))
    return found


def _mask_names(source: Source, cfg: GPTConfig) -> set[str]:
    """Return the mask of every block, for each kind of mask that the file has; check those."""
    found = set()
    for pattern, is_mask in source.table.masks.items():
        names = {pattern.format(n) for n in range(cfg.n_layers)}
        present = names & source.names.plain.keys()
        for name in (source.names.plain[name] for name in present):
            mask = source.tensors[name]
            if not is_mask(mask, cfg.context_length):
                raise ValueError(
                    f"{name} is not the causal mask of this model (its shape is {mask.shape}); "
                    "remove it from the file, or use the model's own code"
                )
        found |= names if present else set()
    return found


def _absent_biases(source: Source, needed: Mapping[str, Row]) -> set[str]:
    """Return the needed biases if the file has none of them and the dialect allows that."""
    biases = {name for name, row in needed.items() if row.is_bias}
    allowed = source.table.biases_optional and not biases & source.names.plain.keys()
    return biases if allowed else set()


def _redundant(source: Source, rows: Iterable[Row]) -> dict[str, str]:
    """Return which tensors of these rows add nothing to the model, and why."""
    found = {}
    for row in rows:
        tensor = source.get(row)
        if row.native == HEAD:  # which `infer_config` has compared
            found[row.foreign] = "the token table again: checked, dropped"
        elif tensor is not None and source.table.biases_optional and not tensor.any():
            found[row.foreign] = "zeros: checked, dropped"
    return found


def _parts(
    name: str, tensor: NDArray[Any], row: Row, shapes: Shapes
) -> tuple[dict[str, NDArray[Any]], tuple[str, ...]]:
    """Return the parameters in a tensor, turned to (out, in) and cut along the first axis."""
    count = len(row.targets)
    length, *width = shapes[row.targets[0]]
    shape = (count * length, *width)
    shape = shape[::-1] if row.transposed else shape
    if tensor.shape != shape:
        raise ValueError(f"{name} has shape {tensor.shape}, but the model needs {shape}")
    parts = np.split(tensor.T if row.transposed else tensor, count)
    notes = ["transposed"] * row.transposed + ["split in three"] * (count > 1)
    renamed = ["renamed"] * (row.native != row.foreign)
    return dict(zip(row.targets, parts, strict=True)), tuple(notes or renamed)
