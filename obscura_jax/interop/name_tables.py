"""Name tables: the GPT-2 of Hugging Face, of nanoGPT and of Flax <-> the course's names.

A row says which parameters of ours, one below the other, are one tensor of theirs. `renamed` turns
their tensors into a course state dict, from which `course_state.from_course` makes a model;
`to_dialect` goes back. Both only rename, split, stack and transpose: no number changes.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.config import GPTConfig
from obscura_jax.interop.names import COURSE, Names
from obscura_jax.interop.names import FLAX as GPT2_IN_FLAX

Tensors = Mapping[str, NDArray[Any]]
_BODY = "transformer."  # what stands before the names of a model that has a head
HEAD, _TABLE = "lm_head.weight", "tok_emb.weight"
_MASKS = ("h.{}.attn.bias", "h.{}.attn.masked_bias")
_QKV = tuple(f"trf_blocks.{{}}.att.W_{part}" for part in ("query", "key", "value"))


@dataclass(frozen=True)
class Row:
    """One tensor of theirs, and the parameters of ours that it holds; {} is a block's number."""

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Table:
    """A dialect: its name, its rows, and whether a tied head is written out all the same."""

    name: str
    rows: tuple[Row, ...]  # the token table first, the head last
    stores_tied_head: bool = False

    @property
    def head(self) -> Row:
        """The row of the output head, which a model with a tied one may lack."""
        return self.rows[-1]


def _gpt2(embedding: str, matrix: str, scale: str, transposed: bool) -> tuple[Row, ...]:
    """GPT-2's tensors under their original names; the last word of a name is the dialect's."""
    rows = [
        Row(f"wte.{embedding}", (_TABLE,)),
        Row(f"wpe.{embedding}", ("pos_emb.weight",)),
        Row(f"ln_f.{scale}", ("final_norm.scale",)),
        Row("ln_f.bias", ("final_norm.shift",)),
    ]
    for theirs, ours in (
        ("attn.c_attn", _QKV),
        ("attn.c_proj", ("trf_blocks.{}.att.out_proj",)),
        ("mlp.c_fc", ("trf_blocks.{}.ff.layers.0",)),
        ("mlp.c_proj", ("trf_blocks.{}.ff.layers.2",)),
    ):
        weights = tuple(f"{name}.weight" for name in ours)
        rows.append(Row(f"h.{{}}.{theirs}.{matrix}", weights, transposed))
        rows.append(Row(f"h.{{}}.{theirs}.bias", tuple(f"{name}.bias" for name in ours)))
    for n in ("1", "2"):
        rows.append(Row(f"h.{{}}.ln_{n}.{scale}", (f"trf_blocks.{{}}.norm{n}.scale",)))
        rows.append(Row(f"h.{{}}.ln_{n}.bias", (f"trf_blocks.{{}}.norm{n}.shift",)))
    return tuple(rows)


_LM_HEAD = Row(HEAD, ("out_head.weight",))
# Hugging Face's Conv1D stores matrices (in, out), as OpenAI did; the others (out, in).
HUGGING_FACE = Table("hf", (*_gpt2("weight", "weight", "weight", transposed=True), _LM_HEAD))
NANOGPT = Table(
    "nanogpt",
    (*_gpt2("weight", "weight", "weight", transposed=False), _LM_HEAD),
    stores_tied_head=True,
)
# Flax's GPT-2 too has layers of its own with (out, in), but the head is Flax's, with (in, out).
_FLAX_HEAD = Row("lm_head.kernel", ("out_head.weight",), transposed=True)
FLAX = Table("flax", (*_gpt2("embedding", "kernel", "scale", transposed=False), _FLAX_HEAD))


def table_for(names: Names, tensors: Tensors) -> Table | None:
    """Return the table that the tensors follow, None for the course's own names.

    nanoGPT and Hugging Face share their names and differ in the orientation of the matrices.
    """
    if names.dialect == COURSE:
        return None
    if names.dialect == GPT2_IN_FLAX:
        return FLAX
    shapes = (tensors[name].shape for short, name in names.plain.items() if "c_fc.weight" in short)
    rows, columns = next((shape for shape in shapes if len(shape) == 2), (0, 0))
    return NANOGPT if rows > columns else HUGGING_FACE


@dataclass(frozen=True)
class Origin:
    """Where tensors of a course state dict come from: their targets, and what was done."""

    source: str
    targets: tuple[str, ...]
    note: str


def renamed(
    table: Table, plain: Mapping[str, str], tensors: Tensors, known: Mapping[str, Any]
) -> tuple[dict[str, NDArray[Any]], list[Origin], bool]:
    """Their tensors as a course state dict, what became of each, and whether the head is tied.

    The parts are views of the source. Masks are checked and dropped, and so is a head that is the
    token table again. A file without any bias, as nanoGPT can write, gets zeros for those that our
    model always has.

    Args:
        table: their dialect.
        plain: the dialect's names -> those of the file.
        tensors: all tensors of the file.
        known: what a config says of our fields. `tie_weights` and `n_layers` must be true;
            `qkv_bias=False` drops the biases of queries, keys and values, if they are 0.

    Raises:
        ValueError: naming, as the file does, tensors that are missing, unexpected or of a shape
            that no model has; or when the config contradicts them.
    """
    blocks = _count_blocks(plain)
    if known.get("n_layers", blocks) != blocks:
        raise ValueError(f"the config says {known['n_layers']} blocks, the tensors are of {blocks}")
    expected = {theirs: (row, ours) for row, theirs, ours in _rows_of(table, blocks)}
    masks = {mask.format(n) for mask in _MASKS for n in range(blocks)}
    biases = {name for name in expected if name.endswith(".bias")}
    of_qkv = {name for name in biases if name.endswith("c_attn.bias")}
    absent = biases if not biases & plain.keys() else of_qkv if not of_qkv & plain.keys() else set()
    missing = expected.keys() - plain.keys() - absent - {table.head.theirs}
    unexpected = {plain[name] for name in plain.keys() - expected.keys() - masks}
    if missing or unexpected:
        words = {"missing": missing, "unexpected": unexpected}
        raise ValueError("; ".join(f"{k} tensors: {some(v)}" for k, v in words.items() if v))
    token_table = tensors[plain[table.rows[0].theirs]]
    if token_table.ndim != 2:
        raise ValueError(
            f"{plain[table.rows[0].theirs]} must be a matrix, it has {token_table.shape}"
        )
    tied = _is_tied(tensors, plain, table, known)
    unbiased = known.get("qkv_bias") is False and not any(
        tensors[plain[name]].any() for name in of_qkv - absent
    )
    course: dict[str, NDArray[Any]] = {}
    origins = []
    for name, source in plain.items():
        tensor = tensors[source]
        if name in masks:
            _check_mask(source, tensor)
            origins.append(Origin(source, (), "causal mask: checked, dropped"))
        elif name == table.head.theirs and tied:
            origins.append(Origin(source, (), "the token table again: checked, dropped"))
        elif name in of_qkv and unbiased:
            origins.append(Origin(source, (), "zeros: checked, dropped"))
        else:
            row, ours = expected[name]
            parts, note = _parts(source, tensor, row, token_table.shape[1])
            course |= dict(zip(ours, parts, strict=True))
            origins.append(Origin(source, ours, note))
    for name in sorted(absent - of_qkv):
        (target,) = expected[name][1]
        weight = course[target.replace(".bias", ".weight").replace(".shift", ".scale")]
        course[target] = np.zeros(len(weight), weight.dtype)
        origins.append(Origin("-", (target,), "absent: zeros"))
    return course, origins, tied


def check_shapes(
    tensors: Tensors,
    origins: Sequence[Origin],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise ValueError, naming a tensor as the file does, unless all parts have these shapes."""
    for origin in origins:
        if origin.source == "-" or not origin.targets:
            continue
        rows, *columns = shapes[origin.targets[0]]
        shape = (rows * len(origin.targets), *columns)
        shape = shape[::-1] if "transposed" in origin.note else shape
        if (given := tensors[origin.source].shape) != shape:
            raise ValueError(f"{origin.source} has shape {given}, the model needs {shape}")


def to_dialect(table: Table, cfg: GPTConfig, tensors: Tensors) -> dict[str, NDArray[Any]]:
    """The tensors of a model of ours, under course names, as a file of theirs has them.

    Biases of queries, keys and values that ours lacks are zeros there. A tied head is left
    out where the dialect does so.
    """
    theirs: dict[str, NDArray[Any]] = {}
    for row, name, ours in _rows_of(table, cfg.n_layers):
        is_head = row is table.head
        if is_head and cfg.tie_weights:
            if not table.stores_tied_head:
                continue
            ours = (_TABLE,)
        like = tensors["final_norm.scale"]
        parts = [tensors[part] if part in tensors else np.zeros_like(like) for part in ours]
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        whole = np.ascontiguousarray(whole.T) if row.transposed else whole
        theirs[name if is_head else _BODY + name] = whole
    return theirs


def _rows_of(table: Table, blocks: int) -> Iterator[tuple[Row, str, tuple[str, ...]]]:
    """Each row with its names, once for each block where it has a place for its number."""
    for row in table.rows:
        for n in range(blocks) if "{}" in row.theirs else (0,):
            yield row, row.theirs.format(n), tuple(name.format(n) for name in row.ours)


def _count_blocks(names: Mapping[str, str]) -> int:
    """How many blocks the names speak of: as many as have numbers in a row from 0."""
    numbers = {int(m[1]) for name in names if (m := re.match(r"h\.(\d{1,6})\.", name))}
    return next(n for n in range(len(numbers) + 1) if n not in numbers)


def _is_tied(
    tensors: Tensors, plain: Mapping[str, str], table: Table, known: Mapping[str, Any]
) -> bool:
    told, row = known.get("tie_weights"), table.head
    table_name = plain[table.rows[0].theirs]
    if row.theirs not in plain:
        if told is False:
            raise ValueError(
                f"missing tensors: {row.theirs}, which the config says is not {table_name}"
            )
        return True
    head = tensors[plain[row.theirs]]
    same = same_bytes(head.T if row.transposed else head, tensors[table_name])
    if told and not same:
        raise ValueError(
            f"{plain[row.theirs]} is not {table_name}, and the config says that they are one"
        )
    return same if told is None else bool(told)


def same_bytes(a: NDArray[Any], b: NDArray[Any]) -> bool:
    """Return whether two arrays have the same shape, type and bits."""
    bits = f"u{a.itemsize}"
    return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a.view(bits), b.view(bits))


def _parts(
    source: str, tensor: NDArray[Any], row: Row, width: int
) -> tuple[list[NDArray[Any]], str]:
    """The parameters in a tensor: turned to (out, in), then cut along the first axis."""
    dimensions = 2 if row.ours[0].endswith(".weight") else 1
    if tensor.ndim != dimensions:
        raise ValueError(f"{source} has shape {tensor.shape}, not {dimensions} axes")
    if row.transposed:
        tensor = tensor.T
    count = len(row.ours)
    if count > 1 and len(tensor) != count * width:
        raise ValueError(
            f"{source} has {len(tensor)} outputs, the model needs {count} times {width}"
        )
    notes = ["transposed"] * row.transposed + ["split in three"] * (count > 1)
    return np.split(tensor, count), ", ".join(notes) or "renamed"


def _check_mask(name: str, mask: NDArray[Any]) -> None:
    """A lower triangle of ones, or the one large negative number beside it."""
    if mask.size == 1 and (name.endswith("masked_bias") or mask.all()):
        return
    if mask.shape[:-2] not in ((1, 1), ()) or mask.ndim < 2 or mask.shape[-1] != mask.shape[-2]:
        raise ValueError(f"{name} has shape {mask.shape}, not that of a causal mask")
    if not np.array_equal(mask.reshape(mask.shape[-2:]) != 0, np.tri(mask.shape[-1], dtype=bool)):
        raise ValueError(f"{name} is not the causal mask (ones on and below the diagonal)")


def some(names: Iterable[str]) -> str:
    """The first name, and how many there are beside it."""
    first, *rest = sorted(names)
    return f"{first} and {len(rest)} more" if rest else first
