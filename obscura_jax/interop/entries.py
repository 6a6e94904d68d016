"""Find the model among the entries of a checkpoint.

A training run saves a model together with an optimizer's state, averaged weights, metrics and
settings. The model is the dictionary whose tensors have a dialect's names.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from obscura_jax.interop.recognize import has_token_table


@dataclass(frozen=True)
class Entry:
    """A dictionary of tensors in a checkpoint.

    Attributes:
        name: its keys from the outermost, joined by dots; "" for the checkpoint itself.
        tensors: its tensors.
        others: everything else in it and in the dictionaries that contain it, by key.
    """

    name: str
    tensors: Mapping[Any, Any]
    others: Mapping[str, Any]


def choose(
    content: Mapping[Any, Any], entry: str | None, is_tensor: Callable[[object], bool]
) -> Entry:
    """Return the entry that is the model: the only one, or the one that `entry` names.

    Dictionaries in `content` are searched, and dictionaries in those. If no tensors have the names
    of a dialect, the only dictionary of tensors is returned, so that its names can be reported.

    Raises:
        ValueError: if there is no model or several, or none that `entry` names.
    """
    entries = list(_entries(content, is_tensor))
    models = [e for e in entries if has_token_table(e.tensors)]
    if entry is not None:
        return _named(entry, models, content)
    if models and not models[0].name:  # the checkpoint is itself a state dict
        return models[0]
    if len(models) > 1:
        names = [e.name for e in models]
        raise ValueError(
            f"it holds {len(models)} models, its entries {' and '.join(names)}; choose one with "
            f"entry={names[0]!r} (--entry {names[0]})"
        )
    if models:
        return models[0]
    inner = [e for e in entries if e.name] or entries
    if len(inner) != 1:
        raise ValueError(
            f"it holds {len(inner)} state dicts (its entries: "
            f"{', '.join(map(str, content)) or 'none'}); save one state dict of a GPT-2"
        )
    return inner[0]


def _named(name: str, models: list[Entry], content: Mapping[Any, Any]) -> Entry:
    found = [e for e in models if e.name == name]
    found = found or [e for e in models if name in e.name.split(".")]
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"the entry {name!r} holds {len(found)} models; choose one of "
            f"{', '.join(e.name for e in found)}"
        )
    names = ", ".join(e.name for e in models if e.name)
    advice = f"choose one of {names}" if names else "no entry is a model, leave entry (--entry) out"
    problem = "is not a model" if name in map(str, content) else "does not exist"
    raise ValueError(f"the entry {name!r} {problem}; {advice}")


def _entries(
    content: Mapping[Any, Any],
    is_tensor: Callable[[object], bool],
    path: tuple[str, ...] = (),
    around: Mapping[str, Any] | None = None,
) -> Iterator[Entry]:
    tensors = {key: value for key, value in content.items() if is_tensor(value)}
    others = {str(key): value for key, value in content.items() if key not in tensors}
    others = {**(around or {}), **others}
    if tensors:
        yield Entry(".".join(path), tensors, others)
    for key, value in content.items():
        if isinstance(value, Mapping) and len(path) < 2:
            rest = {name: other for name, other in others.items() if name != str(key)}
            yield from _entries(value, is_tensor, (*path, str(key)), rest)
