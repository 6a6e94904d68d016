"""A model's special token ids and the files of its tokenizer, which conversions keep.

Hugging Face stores the ids in `config.json`. This package writes them to the `config` of a nanoGPT
checkpoint, to the manifest of an exported model, and to `tokens.json` in a native folder; older
versions of this package refuse a native `config.json` with such entries. Files of the tokenizer are
copied from folder to folder.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from obscura_jax.config import GPTConfig
from obscura_jax.interop.hf_config import special_ids, unused_entries
from obscura_jax.interop.locate import CONFIG, FORMAT, MANIFEST, is_exported
from obscura_jax.interop.tensor_files import read, read_json
from obscura_jax.interop.tokenizer_files import (
    ADDED,
    DEFINITION,
    FOREIGN,
    MERGES,
    SETTINGS,
    SPECIAL,
    VOCABULARY,
)
from obscura_jax.text.tokenizers import GPT2_TOKENS

TOKENS_FILE = "tokens.json"
GENERATION = "generation_config.json"
CARRIED = (  # the files that are copied; the last ones are for transformers only
    *(DEFINITION, VOCABULARY, MERGES, SETTINGS, SPECIAL, ADDED, GENERATION),
    *FOREIGN,
    "chat_template.jinja",
)
GPT2 = "gpt2"


@dataclass(frozen=True)
class TokenRecord:
    """Facts about a model's tokens; what is unknown is absent.

    Attributes:
        tokenizer: "gpt2" for GPT-2's encoding, cut to the model's number of tokens.
        ids: special tokens by Hugging Face's names, such as `eos_token_id`.
        files: the files of a tokenizer, by name.
        unused: entries of the source's config that are not written to any other form.
    """

    tokenizer: str | None = None
    ids: Mapping[str, int | list[int]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    unused: tuple[str, ...] = ()

    @classmethod
    def of(cls, entries: object, **others: Any) -> Self:
        """Return the record that `to_dict` made `entries` of; `others` are the other fields.

        Raises:
            ValueError: for an invalid id or an unknown tokenizer.
        """
        if not isinstance(entries, Mapping):
            raise ValueError("the record of its tokens is damaged; convert the model again")
        tokenizer = entries.get("tokenizer")
        if tokenizer not in (None, GPT2):
            raise ValueError(
                f"its tokenizer is {tokenizer!r}, but this version of obscura_jax knows only "
                f"{GPT2!r}; use the version that wrote it"
            )
        ids = {name: entries[name] for name in sorted(entries) if name.endswith("_token_id")}
        for name, value in ids.items():
            values = value if isinstance(value, list) else [value]
            if not all(isinstance(x, int) and not isinstance(x, bool) for x in values):
                raise ValueError(f"{name}={value!r} is not a token id; write a whole number")
        return cls(tokenizer, ids, **others)

    def to_dict(self) -> dict[str, Any]:
        """Return the tokenizer and the ids as a dictionary."""
        known = {} if self.tokenizer is None else {"tokenizer": self.tokenizer}
        return {**known, **self.ids}

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a text, the first one if there are several, or None."""
        ids = self.ids.get("eos_token_id")
        return (ids[0] if ids else None) if isinstance(ids, list) else ids

    def carried_to(self, dialect: str) -> dict[str, list[str]]:
        """Return the entries and files that a conversion to `dialect` keeps and leaves out."""
        entries = [f"{name}={value}" for name, value in self.to_dict().items()]
        folder = [*entries, *self.files]
        kept = {"native": folder, "hf": folder, "nanogpt": entries, "course": []}[dialect]
        return {"kept": kept, "left out": [x for x in [*folder, *self.unused] if x not in kept]}


NO_TOKENS = TokenRecord()


def gpt2_record(cfg: GPTConfig) -> TokenRecord:
    """Return the record of a model that this package trained on GPT-2's tokens."""
    last = min(cfg.vocab_size, GPT2_TOKENS) - 1
    return TokenRecord(GPT2, {"bos_token_id": last, "eos_token_id": last})


def tokens_at(folder: Path) -> TokenRecord:
    """Return the record in the folder of a model; see the module's docstring.

    Raises:
        ValueError: if a file in the folder is damaged.
    """
    files = {name: folder / name for name in CARRIED if (folder / name).is_file()}
    unused: tuple[str, ...] = ()
    path, entries = folder / CONFIG, {}
    try:
        if is_exported(folder):
            path = folder / MANIFEST
            entries = read(read_json, path).get("tokens", {})
        elif path.is_file():
            config = read(read_json, path)
            if config.get("format") == FORMAT:
                path = folder / TOKENS_FILE
                entries = read(read_json, path) if path.is_file() else {}
            else:
                generation = read(read_json, folder / GENERATION) if GENERATION in files else {}
                entries, unused = special_ids(config, generation), unused_entries(config)
        return TokenRecord.of(entries, files=files, unused=unused)
    except ValueError as error:
        named = str(folder) in str(error)  # `read_json` does so
        raise ValueError(str(error) if named else f"{path}: {error}") from error


def copies(tokens: TokenRecord) -> dict[str, Callable[[Path], object]]:
    """Return a function for each file of the tokenizer that writes a copy to a path."""
    return {name: partial(shutil.copyfile, source) for name, source in tokens.files.items()}
