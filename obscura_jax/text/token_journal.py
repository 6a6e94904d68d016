"""The progress of writing a token file, on disk, so that an interrupted call can resume."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from obscura_jax.atomic_files import replace_text

TOKEN_DTYPE = np.dtype("<u2")  # as nanoGPT's files have them; no vocabulary here is larger


@dataclass
class Journal:
    """The progress of `tokenize_to_file`.

    Attributes:
        texts: path, size in bytes and time of change (ns) of each text; empty for a stream.
        vocab_size: tokens of the vocabulary.
        text: index of the text that is being read.
        offset: bytes of it that are done.
        tokens: tokens written, of all texts.
        done: whether all texts are done.
    """

    texts: list[list[str | int]]
    vocab_size: int
    text: int = 0
    offset: int = 0
    tokens: int = 0
    done: bool = False

    def write(self, path: Path) -> None:
        """Replace the journal of the token file `path` atomically."""
        replace_text(journal_path(path), json.dumps(asdict(self)))


def journal_path(path: Path) -> Path:
    """Return the path of the journal of the token file `path`."""
    return path.with_name(path.name + ".json")


def read_journal(path: Path) -> Journal | None:
    """Read the journal of the token file `path`, or return None if it has none.

    Raises:
        ValueError: when it is not what `Journal.write` writes, or the token file is missing,
            shorter than it says, or, if done, longer.
    """
    name = journal_path(path)
    if not name.exists():
        return None
    remedy = f"delete {name} and {path} to read the text again, or start in a new folder"
    try:
        found = json.loads(name.read_text(encoding="utf-8"))
        journal = Journal(**{field.name: found[field.name] for field in fields(Journal)})
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError(f"{name} is damaged; {remedy}") from None
    if not _is_sound(journal):
        raise ValueError(f"{name} is damaged; {remedy}")
    if not path.is_file():
        raise ValueError(f"{path} is missing, but {name.name} is not; {remedy}")
    size, expected = path.stat().st_size, journal.tokens * TOKEN_DTYPE.itemsize
    if size < expected or (journal.done and size > expected):
        raise ValueError(
            f"{path} has {size} bytes, but {expected} according to {name.name}; {remedy}"
        )
    return journal


def _is_sound(journal: Journal) -> bool:
    """Return whether every field has its type and every count is possible."""
    counts = (journal.vocab_size, journal.text, journal.offset, journal.tokens)
    return (
        all(type(count) is int and count >= 0 for count in counts)
        and type(journal.done) is bool
        and type(journal.texts) is list
        and journal.text <= max(len(journal.texts), 1)
    )
