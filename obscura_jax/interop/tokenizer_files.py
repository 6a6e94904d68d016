"""Read the tokenizer in a model's folder: `tokenizer.json`, or `vocab.json` and `merges.txt`.

GPT-2's tokenizer, complete or cut to its first tokens, is recognized and needs no extra. Any other
one is read by the package `tokenizers` (extra `tokenizers`).
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from obscura_jax.extras import require
from obscura_jax.interop.tensor_files import read, read_json
from obscura_jax.text.tokenizers import (
    END_OF_TEXT,
    GPT2_TOKENS,
    gpt2_merges,
    gpt2_tokenizer,
    gpt2_vocabulary,
)

DEFINITION, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
# Tokenizers of other kinds, which are not read.
FOREIGN = ("vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
_BYTES = 256  # a byte-level vocabulary begins with one token per byte
# Names of special tokens, in the order in which transformers adds them, and its defaults for GPT-2.
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
_LISTS = ("additional_special_tokens", "extra_special_tokens")
_DEFAULTS: Mapping[str, Any] = dict.fromkeys(_NAMES[:3], END_OF_TEXT)
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
        """Return the ids of `text`; a special token in it becomes one id."""
        return self._first + list(self._tokenizer.encode(text).ids)

    def decode(self, ids: Sequence[int], /) -> str:
        """Return the text of `ids` with special tokens; unknown ids are left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))

    def id_to_token(self, token: int) -> str | None:
        """Return the token with that id, or None."""
        found: str | None = self._tokenizer.id_to_token(token)
        return found

    @property
    def end_of_text(self) -> int | None:
        """The id of `<|endoftext|>`, or None if it does not have that token."""
        found: int | None = self._tokenizer.token_to_id(END_OF_TEXT)
        return found

    @property
    def largest_id(self) -> int:
        """The largest id of its vocabulary, without added tokens."""
        return max(self._tokenizer.get_vocab(with_added_tokens=False).values(), default=0)


def read_tokenizer(folder: Path) -> tuple[Any, str] | None:
    """Return the tokenizer in `folder` and the name of its file, or None if there is none.

    Raises:
        ValueError: if the files are damaged or incomplete, or the extra is missing.
    """
    try:
        if (folder / DEFINITION).is_file():
            return _from_definition(folder), DEFINITION
        if (folder / VOCABULARY).is_file():
            if not (folder / MERGES).is_file():
                raise ValueError(f"{folder} has {VOCABULARY} but no {MERGES}; fetch that file too")
            return _from_vocabulary(folder), VOCABULARY
    except (AttributeError, KeyError, TypeError) as error:  # JSON of another shape
        raise ValueError(
            f"the tokenizer files of {folder} are damaged ({error!r}); fetch them again"
        ) from error
    if foreign := next((name for name in FOREIGN if (folder / name).is_file()), None):
        raise ValueError(
            f"{folder} has its tokenizer in {foreign}, which obscura_jax cannot read; write "
            f"{DEFINITION} with transformers' AutoTokenizer and save_pretrained, or give token ids "
            "(--ids)"
        )
    return None


def _from_definition(folder: Path) -> Any:
    path = folder / DEFINITION
    definition, settings = read(read_json, path), _optional(folder / SETTINGS)
    # transformers' class for GPT-2 takes this from its settings and ignores the definition.
    of_gpt2 = settings.get("tokenizer_class") in (None, "GPT2Tokenizer", "GPT2TokenizerFast")
    prefix = settings.get("add_prefix_space") if of_gpt2 else None
    if not prefix:
        with contextlib.suppress(
            AttributeError, KeyError, TypeError
        ):  # the library reports damage better
            if count := _gpt2_tokens(definition):
                return gpt2_tokenizer(count)
    library = require("tokenizers", "tokenizers", f"reading {path}")
    try:
        tokenizer = library.Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no error type of its own
        raise ValueError(
            f"{path} is damaged or not a tokenizer ({error}); fetch it again"
        ) from error
    if prefix is not None and isinstance(tokenizer.pre_tokenizer, library.pre_tokenizers.ByteLevel):
        tokenizer.pre_tokenizer.add_prefix_space = bool(prefix)
    return FolderTokenizer(tokenizer)


def _from_vocabulary(folder: Path) -> Any:
    path, settings = folder / VOCABULARY, _optional(folder / SETTINGS)
    vocabulary, pairs = read(read_json, path), read(_merges, folder / MERGES)
    special = _special_tokens(folder, settings)
    prefix, begin = (bool(settings.get(f"add_{name}")) for name in ("prefix_space", "bos_token"))
    plain = not prefix and not begin and special.keys() <= {END_OF_TEXT}
    if plain and (count := _gpt2_count(vocabulary, list(map(_line, pairs)))):
        return gpt2_tokenizer(count)
    library = require("tokenizers", "tokenizers", f"reading {path}")
    try:
        model = library.models.BPE(vocabulary, pairs)
    except Exception as error:  # as above
        raise ValueError(
            f"{path} and {MERGES} are not a tokenizer ({error}); fetch both again"
        ) from error
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = library.decoders.ByteLevel()
    for token, number in special.items():
        tokenizer.add_special_tokens([library.AddedToken(token, special=True, normalized=False)])
        if number not in (None, tokenizer.token_to_id(token)):
            raise ValueError(
                f"{folder} gives {token} the id {number}, but its vocabulary gives it "
                f"{tokenizer.token_to_id(token)}; fetch the files of the tokenizer again"
            )
    first = _text(settings.get("bos_token") or END_OF_TEXT)
    return FolderTokenizer(tokenizer, [tokenizer.token_to_id(first)] if begin else [])


def _merges(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of tokens in a file of merges, in order."""
    pairs = []
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        words = line.removesuffix("\r").split(" ")
        if len(words) == 2 and words[0] != "#version:":
            pairs.append((words[0], words[1]))
        elif line.strip() and not line.startswith("#version"):
            raise ValueError(f"{path} is damaged: {line[:40]!r} is not two tokens; fetch it again")
    return pairs


def _special_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the special tokens of a vocabulary with known ids, in the order of ids."""
    entries = {**_DEFAULTS, **_optional(folder / SPECIAL), **settings}
    try:
        numbered = [(int(n), _text(x)) for n, x in entries.get("added_tokens_decoder", {}).items()]
    except ValueError as error:
        raise ValueError(f"{folder / SETTINGS} is damaged ({error}); fetch it again") from error
    numbered += [(n, token) for token, n in _optional(folder / ADDED).items()]
    more = [x for name in _LISTS for x in entries.get(name) or []]
    named = [entries[name] for name in _NAMES if entries.get(name)] + more
    in_order: dict[str, int | None] = {token: number for number, token in sorted(numbered)}
    for token in map(_text, named):
        in_order.setdefault(token, None)
    return in_order


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _optional(path: Path) -> dict[str, Any]:
    return read(read_json, path) if path.is_file() else {}


def _gpt2_tokens(definition: Mapping[str, Any]) -> int:
    """Return the number of tokens if a definition is GPT-2's encoding, complete or cut, else 0."""
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
    merges = [x if isinstance(x, str) else _line(x) for x in model.get("merges") or []]
    return _gpt2_count(vocabulary, merges)


def _line(pair: Sequence[str]) -> str:
    """Return a merge as a line of `merges.txt`; "", which is not a merge, if it is not a pair."""
    return " ".join(pair) if len(pair) == 2 else ""


def _gpt2_count(vocabulary: Mapping[str, int], merges: Sequence[str]) -> int:
    """Return the number of tokens if they are GPT-2's first ones and `<|endoftext|>`, else 0."""
    count = len(vocabulary)
    last = count - 1
    if not _BYTES < count <= GPT2_TOKENS or len(merges) != last - _BYTES:
        return 0
    first = {token: n for token, n in gpt2_vocabulary().items() if n < last}
    if vocabulary != first | {END_OF_TEXT: last}:
        return 0
    # Other pairs can spell the same tokens, but they encode text differently.
    return count if merges == gpt2_merges()[: len(merges)] else 0
