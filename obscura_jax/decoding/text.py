"""Generation from text to text: at once, or in pieces that are never revised.

A character is emitted once all of its bytes have arrived. Text that may be the start of a stop
string is held back until later tokens decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jax.typing import DTypeLike

from obscura_jax.decoding.engine import Generator
from obscura_jax.decoding.request import DEFAULT_OPTIONS, GenerationOptions
from obscura_jax.decoding.results import Stats
from obscura_jax.nn.model import GPTModel
from obscura_jax.text.any_tokenizer import IncrementalDecoder, token_ids


class TextStream:
    """Turn ids into text. The pieces add up to `tokenizer.decode` of all ids, cut at a stop string.

    Bytes that are not UTF-8, and ids that the tokenizer does not define, become U+FFFD.

    Attributes:
        stopped: True once a stop string has appeared. The text ends before the stop string that
            begins first, however the ids were split into calls; ids fed later are ignored.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = (), min_new_tokens: int = 0) -> None:
        """Decode with `tokenizer` up to a string in `stop`; ValueError if one of those is empty.

        Stop strings that begin in the text of the first `min_new_tokens` ids are ignored.

        The tokenizer is any object with `encode` and `decode`; see `text.any_tokenizer`.
        """
        if isinstance(stop, str) or not all(stop):
            raise ValueError(f"stop must be a list of strings that are not empty, got {stop!r}")
        self._decoder, self._stop = IncrementalDecoder(tokenizer), tuple(stop)
        self._held = ""
        self._unchecked = min_new_tokens
        self.stopped = False

    def feed(self, ids: Sequence[int]) -> str:
        """Take more ids; return the text that no later id can change."""
        if self.stopped:
            return ""
        first, self._unchecked = ids[: self._unchecked], max(0, self._unchecked - len(ids))
        start = self._decoder.feed(first) if len(first) else ""
        return start + self._take(self._decoder.feed(ids[len(first) :]))

    def finish(self) -> str:
        """Return the rest of the text after the last id."""
        return "" if self.stopped else self._take(self._decoder.finish(), last=True)

    def _take(self, new: str, last: bool = False) -> str:
        text = self._held + new
        cut = min((at for stop in self._stop if (at := text.find(stop)) >= 0), default=len(text))
        # A longer stop string may have begun before the one at `cut`.
        certain = len(text) if last else self._undecided(text)
        self.stopped = cut < len(text) and cut <= certain
        end = min(cut, certain)
        self._held = "" if self.stopped else text[end:]
        return text[:end]

    def _undecided(self, text: str) -> int:
        """Return where an incomplete stop string at the end of `text` begins, else its length."""
        longest = max(map(len, self._stop), default=1)
        for at in range(max(0, len(text) - longest + 1), len(text)):
            if any(stop.startswith(text[at:]) for stop in self._stop):
                return at
        return len(text)


def decode_until_stop(
    tokenizer: Any, ids: Sequence[int], stop: Sequence[str] = (), min_new_tokens: int = 0
) -> tuple[str, int, bool]:
    """Return the text before the first stop string, the number of ids read, and if it stopped.

    Stop strings that begin in the text of the first `min_new_tokens` ids are ignored.

    Raises:
        ValueError: for an empty stop string.
    """
    text = TextStream(tokenizer, stop, min_new_tokens)
    pieces = []
    taken = 0
    while taken < len(ids) and not text.stopped:
        pieces.append(text.feed(ids[taken : taken + 1]))
        taken += 1
    pieces.append(text.finish())
    return "".join(pieces), taken, text.stopped


@dataclass(frozen=True)
class TextOutput:
    """One prompt, continued.

    Attributes:
        prompt: the prompt.
        text: the new text, before any stop string.
        tokens: the ids that were decoded for it.
        logprobs: their log-probabilities under the model.
        finish_reason: "stop" if a stop id or stop string ended it, else "length".
        stats: counts and times of the batch.
        top_logprobs: for each of these ids, the most probable tokens as (id, log-probability); None
            if the options do not ask for them.
    """

    prompt: str
    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    stats: Stats
    top_logprobs: list[list[tuple[int, float]]] | None = None


def generate_text(
    engine: Generator,
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int | None = None,
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    stop: Sequence[str] = (),
) -> list[TextOutput]:
    """Continue each prompt in one batch; `stream_text` has the other arguments and the errors."""
    TextStream(tokenizer, stop)  # rejects bad stop strings before any work
    encoded = [token_ids(tokenizer, prompt) for prompt in prompts]
    out = engine.generate(encoded, max_new_tokens, **vars(options))
    least = options.controls.min_lengths(len(prompts))
    texts = []
    for row, prompt in enumerate(p for p in prompts for _ in range(options.samples)):
        least_here = least[row // options.samples]
        text, count, stopped = decode_until_stop(tokenizer, out.tokens[row], stop, least_here)
        tokens, logprobs = out.tokens[row][:count], out.logprobs[row][:count]
        reason = "stop" if stopped else out.finish_reasons[row]
        top = None if out.top_logprobs is None else out.top_logprobs[row][:count]
        texts.append(TextOutput(prompt, text, tokens, logprobs, reason, out.stats, top))
    return texts


def stream_text(
    model: GPTModel,
    params: Any,
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int | None = None,
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    stop: Sequence[str] = (),
    dtype: DTypeLike | None = None,
    tokens_per_chunk: int = 8,
) -> Iterator[list[str]]:
    """Yield the continuation of each prompt, piece by piece.

    Args:
        model: the model.
        params: its parameters.
        prompts: one text per row; a special token in it, such as `<|endoftext|>`, is one id.
        tokenizer: the model's own, such as `load_tokenizer(source, model.cfg)` or
            `gpt2_tokenizer()`: any object with `encode` and `decode`.
        max_new_tokens: maximum number of new tokens per row. By default 64, or fewer if less room
            is left in the context after the longest prompt.
        options: sampling, key, stop ids and more; by default greedy.
        stop: strings that end a row; its text ends before the first of them. `min_new_tokens` of
            `options.controls` also ignores those that begin too early.
        dtype: type to compute in, float32 or bfloat16; by default the type of `params`.
        tokens_per_chunk: number of tokens per row to wait for.

    Returns:
        An iterator over chunks: a piece of text, maybe empty, for each of the B rows. It ends once
        every row has ended, by a stop id, a stop string or its length.

    Raises:
        ValueError: at the call, for whatever `stream` rejects and for empty stop strings; while
            iterating, for logits that are NaN or infinite.
    """
    engine = Generator(model, params, dtype=dtype, weights="as-given")
    return text_pieces(
        engine,
        prompts,
        tokenizer,
        max_new_tokens,
        options,
        stop=stop,
        tokens_per_chunk=tokens_per_chunk,
    )


def text_pieces(
    engine: Generator,
    prompts: Sequence[str],
    tokenizer: Any,
    max_new_tokens: int | None = None,
    options: GenerationOptions = DEFAULT_OPTIONS,
    *,
    stop: Sequence[str] = (),
    tokens_per_chunk: int = 8,
) -> Iterator[list[str]]:
    """Do the work of `stream_text` with an engine."""
    least = options.controls.min_lengths(len(prompts))
    texts = [TextStream(tokenizer, stop, n) for n in least for _ in range(options.samples)]
    ids = [token_ids(tokenizer, prompt) for prompt in prompts]
    chunks = engine.stream(ids, max_new_tokens, tokens_per_chunk=tokens_per_chunk, **vars(options))
    return _pieces(chunks, texts)


def _pieces(chunks: Iterator[list[list[int]]], texts: list[TextStream]) -> Iterator[list[str]]:
    for new in chunks:
        # A row without new ids has ended: return what it held back.
        yield [
            text.feed(ids) if ids else text.finish() for text, ids in zip(texts, new, strict=True)
        ]
        if all(text.stopped for text in texts):
            return
    yield [text.finish() for text in texts]
