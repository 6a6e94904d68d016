"""Tokens and text as they are made: chunks out of the same compiled loop that `generate` runs.

Text is never ahead of itself: a character is given when all its bytes are there, and what could be
the beginning of a stop string waits until it is known not to be one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import jax

from obscura_jax.checks import check_size
from obscura_jax.decoding.programs import State
from obscura_jax.decoding.request import Options, Plan, check_finite, plan, run
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.any_tokenizer import IncrementalDecoder, token_ids


def stream(
    model: GPTModel,
    params: Any,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int | None = None,
    *,
    tokens_per_chunk: int = 8,
    **options: Unpack[Options],
) -> Iterator[list[list[int]]]:
    """The tokens of `generate`, given as they are made.

    Args:
        model: the model.
        params: its parameters.
        prompts: one list of token ids for each row; lengths may differ.
        max_new_tokens: the largest number of new tokens in a row. By default 64, or fewer if less
            room is left in the context after the longest prompt.
        tokens_per_chunk: how many tokens of a row to wait for. Each size runs the same compiled
            programs; a small one returns to Python more often.
        options: temperature, top_k, top_p, min_p, key, stop_ids, dtype, sliding and
            programs, as in `generate`.

    Returns:
        For the first token, and then for every `tokens_per_chunk` more, the new ids of each
        of the B rows: [] for a row that has ended. Joined row by row, they are
        `generate(...).tokens`.

    Raises:
        ValueError: at the call, for what `generate` refuses and for a chunk below 1; later on, for
            logits that are NaN or infinite.
    """
    tokens_per_chunk = check_size("tokens_per_chunk", tokens_per_chunk)
    call = plan(model, params, prompts, max_new_tokens, **options)
    return _new_ids(call, tokens_per_chunk)


def _new_ids(call: Plan, tokens_per_chunk: int) -> Iterator[list[list[int]]]:
    given = [0] * len(call.prompts)
    for state in run(call, tokens_per_chunk):
        new = _since(given, state)
        given = [old + len(ids) for old, ids in zip(given, new, strict=True)]
        yield new


def _since(given: list[int], state: State) -> list[list[int]]:
    """Each row's ids after its first `given`, copied: the state's arrays do not live on."""
    broken, made, drawn = jax.device_get((state.broken, state.made, state.tokens))
    check_finite(broken)
    return [row[a:b].tolist() for row, a, b in zip(drawn, given, made, strict=True)]


class TextStream:
    """Ids in, text out. The pieces add up to `tokenizer.decode` of all ids, cut at a stop string.

    Bytes that are not UTF-8, and ids that the tokenizer lacks, become U+FFFD.

    Attributes:
        stopped: whether a stop string has appeared. The text ends before the one that begins
            first, however the ids were split into calls; what is fed from then on is ignored.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """Text of `tokenizer`, up to a string in `stop`; ValueError if one of those is empty.

        The tokenizer is any object with `encode` and `decode`; see `text.any_tokenizer`.
        """
        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"stop must be a list of strings that are not empty, got {stop!r}")
        self._decoder, self._stop = IncrementalDecoder(tokenizer), tuple(stop)
        self._held = ""
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """Return the text that is certain after these ids too."""
        return "" if self.stopped else self._take(self._decoder.feed(ids))

    def finish(self) -> str:
        """The rest of the text, at the end of all ids."""
        return "" if self.stopped else self._take(self._decoder.finish(), last=True)

    def _take(self, new: str, last: bool = False) -> str:
        text = self._held + new
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=len(text))
        # A longer stop string may have begun before the one that stands at `cut`.
        certain = len(text) if last else self._undecided(text)
        self.stopped = cut < len(text) and cut <= certain
        end = min(cut, certain)
        self._held = "" if self.stopped else text[end:]
        return text[:end]

    def _undecided(self, text: str) -> int:
        """Where the first stop string begins that the end of `text` breaks off, if one does."""
        longest = max(map(len, self._stop), default=1)
        for at in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stop):
                return at
        return len(text)


def decode_until_stop(
    tokenizer: Any, ids: Sequence[int], stop: Sequence[str] = ()
) -> tuple[str, int, bool]:
    """The text of `ids` before the first stop string, how many ids that took, and if it came.

    Raises:
        ValueError: for an empty stop string.
    """
    text = TextStream(tokenizer, stop)
    pieces = []
    taken = 0
    while taken < len(ids) and not text.stopped:
        pieces.append(text.feed(ids[taken : taken + 1]))
        taken += 1
    pieces.append(text.finish())
    return "".join(pieces), taken, text.stopped


def stream_text(
    model: GPTModel,
    params: Any,
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int | None = None,
    *,
    tokens_per_chunk: int = 8,
    stop: Sequence[str] = (),
    **options: Unpack[Options],
) -> Iterator[list[str]]:
    """As `stream`, from text to text.

    Args:
        model: the model.
        params: its parameters.
        prompts: one text for each row; `<|endoftext|>` in it is read as that one token.
        tokenizer: the model's own, such as `load_tokenizer(source, model.cfg)` or
            `gpt2_tokenizer()`: any object with `encode` and `decode`.
        max_new_tokens: the largest number of new tokens in a row. By default 64, or fewer if less
            room is left in the context after the longest prompt.
        tokens_per_chunk: how many tokens of a row to wait for.
        stop: strings that end a row; its text ends before the first of them.
        options: temperature, top_k, top_p, min_p, key, stop_ids, dtype, sliding and
            programs, as in `generate`.

    Returns:
        For each chunk a piece of text, maybe empty, for each of the B rows. It ends once every row
        has ended, by a stop id, a stop string or its length.

    Raises:
        ValueError: at the call, for what `stream` refuses and for empty stop strings; later on, for
            logits that are NaN or infinite.
    """
    texts = [TextStream(tokenizer, stop) for _ in prompts]
    chunks = stream(
        model,
        params,
        [token_ids(tokenizer, prompt) for prompt in prompts],
        max_new_tokens,
        tokens_per_chunk=tokens_per_chunk,
        **options,
    )
    return _pieces(chunks, texts)


def _pieces(chunks: Iterator[list[list[int]]], texts: list[TextStream]) -> Iterator[list[str]]:
    for new in chunks:
        # A row without new ids has ended: what it held back is text.
        yield [
            text.feed(ids) if ids else text.finish() for text, ids in zip(texts, new, strict=True)
        ]
        if all(text.stopped for text in texts):
            return
    yield [text.finish() for text in texts]
