"""The tokenizer in a model's folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

GPT-2's own, or its first tokens, is recognized and needs nothing; any other one is read by the
package `tokenizers` (extra `tokenizers`).
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from obscura_jax.extras import require
from obscura_jax.interop.tensor_files import read, read_json
from obscura_jax.text.tokenizers import END_OF_TEXT, GPT2_TOKENS, gpt2_tokenizer, gpt2_vocabulary

DEFINITION, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_BYTES = 256  # a byte-level vocabulary begins with one token for each
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_BYTE_LEVEL: Mapping[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}


class FolderTokenizer:
    """A tokenizer of the package `tokenizers`, with `encode` and `decode` on plain lists of ids."""

    def __init__(self, tokenizer: Any, first: Sequence[int] = ()) -> None:
        """Use `tokenizer`; the ids `first` begin every encoded text."""
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._first = tokenizer, list(first)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; a special token in it is one id."""
        return self._first + list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of `ids`, special tokens included; unknown ids are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def id_to_token(self, token: int) -> str | None:
        """Return the token with that id, or None."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    @property
    def end_of_text(self) -> int | None:
        """The id of `<|endoftext|>`, if it has that token."""
        found: int | None = self._tokenizer.token_to_id(END_OF_TEXT)
        return found

    @property
    def largest_id(self) -> int:
        """The largest id of its vocabulary, without tokens that were added to it later."""
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=0)


def read_tokenizer(folder: Path) -> tuple[Any, str] | None:
    """Return the tokenizer in `folder` and the name of its file, or None if there is none.

    Raises:
        ValueError: when the files are damaged or incomplete, or the extra is missing.
    """
    try:
        if (folder / DEFINITION).is_file():
            return _from_definition(folder), DEFINITION
        if (folder / VOCABULARY).is_file():
            if not (folder / MERGES).is_file():
                raise ValueError(f"{folder} has {VOCABULARY} without {MERGES}: fetch that file too")
            return _from_vocabulary(folder), VOCABULARY
    except (AttributeError, KeyError, TypeError) as error:  # JSON of another shape
        raise ValueError(f"the tokenizer files of {folder} are damaged: fetch them again") from error
    return None


def _from_definition(folder: Path) -> Any:
    path = folder / DEFINITION
    definition = read(read_json, path)
    settings = _optional(folder / SETTINGS)
    if not settings.get("add_bos_token"):
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # the library says it better
            if count := _gpt2_tokens(definition):
                return gpt2_tokenizer(count)
    library = require("tokenizers", "tokenizers", f"reading {path}")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no error type of its own
        raise ValueError(f"{path} is damaged, or not a tokenizer ({error})") from error
    return FolderTokenizer(tokenizer, _first_ids(tokenizer, settings))


def _from_vocabulary(folder: Path) -> Any:
    path = folder / VOCABULARY
    vocabulary = read(read_json, path)
    text = read(lambda p: p.read_bytes().decode(errors="replace"), folder / MERGES)
    lines = text.split("\n")
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if wrong := next((pair for pair in pairs if len(pair) != 2), None):
        raise ValueError(f"{folder / MERGES} is damaged: {' '.join(wrong)[:40]!r} is not two tokens")
    settings = _optional(folder / SETTINGS)
    special = _special_tokens(folder, settings)
    plain = not settings.get("add_bos_token") and not settings.get("add_prefix_space")
    if plain and special.keys() <= {END_OF_TEXT} and (count := _gpt2_count(vocabulary, pairs)):
        return gpt2_tokenizer(count)
    library = require("tokenizers", "tokenizers", f"reading {path}")
    try:
        model = library.models.BPE(vocabulary, [tuple(pair) for pair in pairs])
    except Exception as error:  # as above
        raise ValueError(f"{path} and {MERGES} are not a tokenizer ({error})") from error
    tokenizer = library.Tokenizer(model)
    prefix = bool(settings.get("add_prefix_space"))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = library.decoders.ByteLevel()
    for token, number in special.items():
        tokenizer.add_special_tokens([library.AddedToken(token, special=True, normalized=False)])
        if number not in (None, tokenizer.token_to_id(token)):
            raise ValueError(
                f"{folder} gives {token} the id {number}, and its vocabulary leaves it "
                f"{tokenizer.token_to_id(token)}"
            )
    return FolderTokenizer(tokenizer, _first_ids(tokenizer, settings))


def _special_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the special tokens that the files beside a vocabulary name, with ids where given."""
    named = [*_named(settings), *_named(_optional(folder / SPECIAL))]
    numbered = [(int(n), _text(x)) for n, x in settings.get("added_tokens_decoder", {}).items()]
    numbered += [(n, token) for token, n in _optional(folder / ADDED).items()]
    in_order: dict[str, int | None] = {token: number for number, token in sorted(numbered)}
    in_order |= {token: None for token in named if token not in in_order}
    return in_order or {END_OF_TEXT: None}  # transformers' default for GPT-2


def _named(entries: Mapping[str, Any]) -> Iterable[str]:
    for name, value in entries.items():
        if name.endswith("_token") and value and not isinstance(value, bool):
            yield _text(value)
        elif name in ("additional_special_tokens", "extra_special_tokens") and value:
            yield from map(_text, value)


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _first_ids(tokenizer: Any, settings: Mapping[str, Any]) -> list[int]:
    """Return the ids that `add_bos_token` puts before a text, if the tokenizer does not itself."""
    if not settings.get("add_bos_token"):
        return []
    first = tokenizer.token_to_id(_text(settings.get("bos_token") or END_OF_TEXT))
    return [] if first is None or tokenizer.encode("").ids[:1] == [first] else [first]


def _optional(path: Path) -> dict[str, Any]:
    return read(read_json, path) if path.is_file() else {}


def _gpt2_tokens(definition: Mapping[str, Any]) -> int:
    """Return of how many tokens a definition is GPT-2's own encoding, or 0."""
    model, before = definition.get("model"), definition.get("pre_tokenizer")
    after, added = definition.get("post_processor"), definition.get("added_tokens") or []
    if not isinstance(model, Mapping) or not isinstance(before, Mapping):
        return 0
    plain = (
        model.get("type", "BPE") == "BPE"
        and not any(model.get(name) for name in ("dropout", "byte_fallback", "ignore_merges"))
        and not any(model.get(name) for name in _AFFIXES)
        and definition.get("normalizer") is None
        and {name: before.get(name) for name in _BYTE_LEVEL} == _BYTE_LEVEL
        and before.get("use_regex", True)
        and (after is None or after.get("type") == "ByteLevel")
        and (definition.get("decoder") or {}).get("type") == "ByteLevel"
        and all(
            token.get("content") == END_OF_TEXT
            and not any(token.get(name) for name in ("lstrip", "rstrip", "single_word"))
            for token in added
        )
    )
    if not plain:
        return 0
    vocabulary = dict(model.get("vocab") or {}) | {token["content"]: token["id"] for token in added}
    merges = [x.split(" ") if isinstance(x, str) else x for x in model.get("merges") or []]
    return _gpt2_count(vocabulary, merges)


def _gpt2_count(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> int:
    """Return the number of tokens if they are GPT-2's first and `<|endoftext|>`, or 0."""
    count = len(vocabulary)
    last = count - 1
    if not _BYTES < count <= GPT2_TOKENS or len(merges) != last - _BYTES:
        return 0
    theirs = {token: n for token, n in gpt2_vocabulary().items() if n < last}
    if vocabulary != theirs | {END_OF_TEXT: last}:
        return 0
    in_order = list(theirs)[_BYTES:]
    return count if ["".join(pair) for pair in merges] == in_order else 0
