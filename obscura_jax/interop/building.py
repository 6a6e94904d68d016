"""Named tensors of any dialect -> a config, a parameter tree, and the audit of how."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from obscura_jax.config import GPTConfig
from obscura_jax.interop import name_tables
from obscura_jax.interop.course_state import (
    ConversionRecord,
    Tensors,
    from_course,
    infer_config,
    parameter_shapes,
)
from obscura_jax.interop.names import Names, understood

_TOKENS, _HEAD = "tok_emb.weight", "out_head.weight"


def built(
    tensors: Tensors, known: Mapping[str, Any]
) -> tuple[str, GPTConfig, dict[str, Any], list[ConversionRecord]]:
    """Build a model of tensors that nobody else may change from now on.

    Args:
        tensors: the tensors of a file, under its names.
        known: what else is known of the config; see `infer_config`.

    Returns:
        The dialect, the config, the parameters, and a row for each tensor in the file's order.

    Raises:
        ValueError: when the tensors are not wholly understood, or contradict what is known.
    """
    names = understood(tensors)
    table = name_tables.table_for(names, tensors)
    if table is None:
        cfg, params, rows = _course(names, tensors, dict(known))
    else:
        cfg, params, rows = _translated(table, names, tensors, dict(known))
    if names.prefix:
        rows = [_without(names.prefix, row) for row in rows]
    rows += [ConversionRecord(x, "-", "a count: dropped", tensors[x]) for x in names.ignored]
    place = {name: n for n, name in enumerate(tensors)}
    rows.sort(key=lambda row: place.get(row.source, len(place)))
    return "course" if table is None else table.name, cfg, params, rows


def _course(
    names: Names, tensors: Tensors, known: dict[str, Any]
) -> tuple[GPTConfig, dict[str, Any], list[ConversionRecord]]:
    course = {plain: tensors[name] for plain, name in names.plain.items()}
    rows = []
    if _has_one_table(course, known):
        known["tie_weights"] = True
        note = "the token table again: checked, dropped"
        rows = [ConversionRecord(names.plain[_HEAD], "-", note, course.pop(_HEAD))]
    cfg = infer_config(course, known)
    params, audit = from_course(course, cfg, share=True)
    return cfg, params, [replace(row, source=names.plain[row.source]) for row in audit] + rows


def _has_one_table(course: Tensors, known: Mapping[str, Any]) -> bool:
    """Return whether the head is there, is the token table, and is so for a reason."""
    if _HEAD not in course or _TOKENS not in course:
        return False
    head, table = course[_HEAD], course[_TOKENS]
    same = name_tables.same_bytes(head, table)
    # In a file that has both as one tensor they are at one address.
    return same and known.get("tie_weights", head.ctypes.data == table.ctypes.data) is True


def _translated(
    table: name_tables.Table, names: Names, tensors: Tensors, known: dict[str, Any]
) -> tuple[GPTConfig, dict[str, Any], list[ConversionRecord]]:
    course, origins, tied = name_tables.renamed(table, names.plain, tensors, known)
    known = {k: v for k, v in known.items() if k != "qkv_bias"} | {"tie_weights": tied}
    cfg = infer_config(course, known)
    name_tables.check_shapes(tensors, origins, parameter_shapes(cfg))
    params, audit = from_course(course, cfg, share=True)
    became = {row.source: row.note for row in audit}
    rows = []
    for origin in origins:
        of_targets = {became[target] for target in origin.targets} - {"as it is"}
        note = ", ".join((origin.note, *of_targets))
        absent = origin.source == "-"
        values = course[origin.targets[0]] if absent else tensors[origin.source]
        rows.append(ConversionRecord(origin.source, ", ".join(origin.targets) or "-", note, values))
    return cfg, params, rows


def _without(prefix: str, row: ConversionRecord) -> ConversionRecord:
    """Return the row with a note of the prefix that its name lost."""
    if row.source == "-":
        return row
    notes = [f"prefix {prefix} removed", *([] if row.note == "as it is" else [row.note])]
    return replace(row, note=", ".join(notes))
