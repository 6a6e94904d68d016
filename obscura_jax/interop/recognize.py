"""Recognize the dialect of a file's tensors by their names, and remove a prefix of all names.

torch.compile, DataParallel and modules that hold a model put `_orig_mod.`, `module.`, `model.` or
another prefix before every name. A prefix that only some names have is an error: the tensors are
not those of one model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from obscura_jax.interop import name_tables
from obscura_jax.interop.name_tables import Row, Table, Tensors

COURSE, GPT2, FLAX = "the course", "GPT-2 in PyTorch", "GPT-2 in Flax"
_MARKS = {"tok_emb.weight": COURSE, "wte.weight": GPT2, "wte.embedding": FLAX}
_BODY = "transformer."  # precedes the names of a GPT-2 that has a head
_COMPILED = "_orig_mod."  # also inside a name, if only a part of the model was compiled
_WRAPPERS = (_COMPILED, "module.", "model.")
_COUNTER = "n_averaged"  # a counter of torch's AveragedModel
_TOKEN_TABLE = re.compile(
    r"(?P<prefix>(?:.+?\.)??)(?P<body>(?:transformer\.(?:_orig_mod\.)*)?)"
    r"(?P<table>tok_emb|wte)\.(?:_orig_mod\.)*(?P<kind>weight|embedding)"
)


@dataclass(frozen=True)
class Names:
    """The names of one model's tensors.

    Attributes:
        dialect: `COURSE`, `GPT2` or `FLAX`.
        prefix: removed from the beginning of every name, such as "module."; often "".
        plain: the dialect's name of each tensor -> its name in the file, in the file's order.
        counters: tensors that are no part of a model, also in `plain`, under their own names.
    """

    dialect: str
    prefix: str
    plain: dict[str, str]
    counters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """The tensors of a file whose dialect is known.

    Attributes:
        table: the dialect.
        names: the dialect's name of every tensor.
        tensors: the tensors by their names in the file.
    """

    table: Table
    names: Names
    tensors: Tensors

    def get(self, row: Row) -> NDArray[Any] | None:
        """Return the tensor of a numbered row as the file has it, or None."""
        return self.tensors.get(self.names.plain.get(row.foreign, ""))

    def name(self, row: Row) -> str:
        """Return the file's name of the tensor of a row, or the dialect's if the file lacks it."""
        return self.names.plain.get(row.foreign, row.foreign)


def recognize(tensors: Tensors) -> Source:
    """Find the dialect of the tensors.

    Raises:
        ValueError: if `recognize_names` does.
    """
    names = recognize_names(tensors)
    by_dialect = {COURSE: name_tables.COURSE, FLAX: name_tables.FLAX}
    table = by_dialect.get(names.dialect) or _table_of_gpt2(names, tensors)
    return Source(table, names, tensors)


def has_token_table(names: Iterable[object]) -> bool:
    """Return whether a dialect's token table is among the names, with any prefix."""
    return any(isinstance(name, str) and _match(name) for name in names)


def recognize_names(names: Iterable[str]) -> Names:
    """Find the dialect and the prefix of the names.

    Raises:
        ValueError: if the names follow no dialect or two, belong to two models, or if only some
            have a prefix.
    """
    names = list(names)
    dialect, prefix, body, first = _find_token_table(names)
    plain: dict[str, str] = {}
    counters = tuple(
        name
        for name in names
        if name.endswith(_COUNTER) and prefix.startswith(name.removesuffix(_COUNTER))
    )
    for name in names:
        if name in counters:
            plain[name] = name
            continue
        if not name.startswith(prefix):
            raise _mixed(prefix, first, name)
        short = name.removeprefix(prefix)
        if wrapper := next((word for word in _WRAPPERS if short.startswith(word)), None):
            raise _mixed(wrapper, name, first)
        if dialect != COURSE and body != short.startswith(_BODY):
            if not body:
                raise _mixed(_BODY, name, first)
            if re.match(r"(wte|wpe|h|ln_f)\.", short):
                raise _mixed(_BODY, first, name)
        short = re.sub(rf"(?<=\.){re.escape(_COMPILED)}", "", short)
        short = short.removeprefix(_BODY if body else "")
        if short in plain:
            raise _duplicate(plain[short], name)
        plain[short] = name
    return Names(dialect, prefix, plain, counters)


def _table_of_gpt2(names: Names, tensors: Tensors) -> Table:
    """Tell nanoGPT from Hugging Face, whose names are equal, by the orientation of a matrix."""
    shapes = (tensors[name].shape for short, name in names.plain.items() if "c_fc.weight" in short)
    rows, columns = next((shape for shape in shapes if len(shape) == 2), (0, 0))
    return name_tables.NANOGPT if rows > columns else name_tables.HUGGING_FACE


def _match(name: str) -> re.Match[str] | None:
    match = _TOKEN_TABLE.fullmatch(name)
    return match if match and f"{match['table']}.{match['kind']}" in _MARKS else None


def _find_token_table(names: list[str]) -> tuple[str, str, bool, str]:
    """Return dialect, prefix, whether names have `transformer.`, and the token table's name."""
    found: dict[str, tuple[str, str]] = {}  # dialect -> prefix, name
    for name in sorted(names):
        if not (match := _match(name)):
            continue
        dialect = _MARKS[f"{match['table']}.{match['kind']}"]
        prefix, other = found.setdefault(dialect, (match["prefix"], name))
        if prefix != match["prefix"]:
            raise ValueError(
                f"the tensors belong to two models: {other} and {name}; save the state dict of one"
            )
        if other != name:
            raise _duplicate(other, name)
    if len(found) > 1:
        kinds = " and ".join(f"{dialect} ({name})" for dialect, (_, name) in found.items())
        raise ValueError(
            f"the tensors have names of two dialects: {kinds}; save the state dict of one model"
        )
    if not found:
        first = ", ".join(sorted(names)[:3]) or "none"
        raise ValueError(
            f"the tensors have names of no known dialect: none of {', '.join(_MARKS)} is among "
            f"them, the first are: {first}; save the state dict of a GPT-2"
        )
    ((dialect, (prefix, name)),) = found.items()
    return dialect, prefix, name.startswith(prefix + _BODY), name


def _duplicate(first: str, second: str) -> ValueError:
    return ValueError(f"{first} and {second} are the same parameter; save only one of them")


def _mixed(prefix: str, having: str, lacking: str) -> ValueError:
    return ValueError(
        f"only some names have the prefix {prefix!r}: {having} has it, {lacking} does not; "
        "save the state dict of one model"
    )
