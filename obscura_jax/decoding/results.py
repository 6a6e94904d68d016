"""The result of `generate`: tokens, log-probabilities and counts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """Counts and times of one call of `generate`.

    Attributes:
        prompt_tokens: number of tokens in all prompts.
        new_tokens: number of tokens returned, in all rows.
        prefill_seconds: seconds until every row had its first token.
        decode_seconds: seconds for all other tokens.
        n_compilations: programs compiled during the call; their time is part of the seconds.
    """

    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    n_compilations: int


@dataclass(frozen=True)
class GenerateOutput:
    """The new tokens of each row.

    Attributes:
        tokens: their ids, without the stop id.
        logprobs: the log-probability of each token under the model, before temperature and filters.
        finish_reasons: "stop" for a row that ended at a stop id, else "length".
        stats: counts and times of the call.
        top_logprobs: for each token of each row, the most probable tokens as (id, log-probability),
            the most probable first; None if `top_logprobs` was not asked for.
    """

    tokens: list[list[int]]
    logprobs: list[list[float]]
    finish_reasons: list[str]
    stats: Stats
    top_logprobs: list[list[list[tuple[int, float]]]] | None = None
