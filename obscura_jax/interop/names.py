"""Names of tensors: which dialect they follow, and what comes before every one of them.

torch.compile, DataParallel and modules that hold a model put `_orig_mod.`, `module.`, `model.` or
another prefix before each name. A prefix that all names have says nothing, and is removed; where
only some have it, the tensors are not of one model.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

COURSE, GPT2, FLAX = "the course", "GPT-2 in PyTorch", "GPT-2 in Flax"
_MARKS = {"tok_emb.weight": COURSE, "wte.weight": GPT2, "wte.embedding": FLAX}
_BODY = "transformer."  # before the names of a GPT-2 that has a head
_COMPILED = "_orig_mod."  # also inside a name, where only a part of the model was compiled
_WRAPPERS = (_COMPILED, "module.", "model.")
_COUNTER = "n_averaged"  # torch's AveragedModel counts in it
_TOKEN_TABLE = re.compile(
    r"(?P<prefix>(?:.+?\.)??)(?P<body>(?:transformer\.(?:_orig_mod\.)*)?)"
    r"(?P<table>tok_emb|wte)\.(?:_orig_mod\.)*(?P<kind>weight|embedding)"
)


@dataclass(frozen=True)
class Names:
    """The names of one model's tensors.

    Attributes:
        dialect: `COURSE`, `GPT2` or `FLAX`.
        prefix: what was removed from the beginning of every name, such as "module."; often "".
        plain: the dialect's name of each tensor -> the name in the file, in the file's order.
        ignored: names in the file of tensors that are no part of a model.
    """

    dialect: str
    prefix: str
    plain: dict[str, str]
    ignored: tuple[str, ...] = ()


def has_token_table(names: Iterable[object]) -> bool:
    """Return whether a dialect's token table is among the names, with any prefix."""
    return any(isinstance(name, str) and _marks(name) for name in names)


def understood(names: Iterable[str]) -> Names:
    """Find the dialect and the prefix of the names.

    Raises:
        ValueError: when they are of no dialect or of two, of two models, or when only some have a
            prefix.
    """
    names = list(names)
    dialect, prefix, body, first = _origin(names)
    plain: dict[str, str] = {}
    ignored = []
    for name in names:
        short = name.removeprefix(prefix)
        if name.endswith(_COUNTER) and prefix.startswith(name.removesuffix(_COUNTER)):
            ignored.append(name)
            continue
        if not name.startswith(prefix):
            raise _mixed(prefix, first, name)
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
            raise ValueError(f"two tensors for one place: {plain[short]} and {name}")
        plain[short] = name
    return Names(dialect, prefix, plain, tuple(ignored))


def _marks(name: str) -> re.Match[str] | None:
    match = _TOKEN_TABLE.fullmatch(name)
    return match if match and f"{match['table']}.{match['kind']}" in _MARKS else None


def _origin(names: list[str]) -> tuple[str, str, bool, str]:
    """Return dialect, prefix, whether names have `transformer.`, and the token table's name."""
    found: dict[str, tuple[str, str]] = {}  # dialect -> prefix, name
    for name in sorted(names):
        if not (match := _marks(name)):
            continue
        dialect = _MARKS[f"{match['table']}.{match['kind']}"]
        prefix, other = found.setdefault(dialect, (match["prefix"], name))
        if prefix != match["prefix"]:
            raise ValueError(
                f"the tensors are of two models: {other} and {name}; save the state dict of one"
            )
        if other != name:
            raise ValueError(f"two tensors for one place: {other} and {name}")
    if len(found) > 1:
        kinds = " and ".join(f"{dialect} ({name})" for dialect, (_, name) in found.items())
        raise ValueError(f"the tensors are of two dialects at once: {kinds}")
    if not found:
        first = ", ".join(sorted(names)[:3]) or "none"
        raise ValueError(
            f"the tensors are those of no known dialect: none of {', '.join(_MARKS)} is among "
            f"them; the first are: {first}"
        )
    ((dialect, (prefix, name)),) = found.items()
    return dialect, prefix, name.startswith(prefix + _BODY), name


def _mixed(prefix: str, having: str, lacking: str) -> ValueError:
    return ValueError(
        f"only some names have the prefix {prefix!r}: {having} has it, {lacking} does not; "
        "save the state dict of one model"
    )
