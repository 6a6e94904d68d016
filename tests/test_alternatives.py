"""Top-n log-probabilities: against slow NumPy, for each row's own n, and only where asked."""

import numpy as np
import pytest

from obscura_jax import GenerationOptions, generate
from obscura_jax.decoding.engine import Generator
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.request import plan_generation
from obscura_jax.decoding.stream import stream
from obscura_jax.decoding.text import generate_text
from obscura_jax.interop.model_tokenizer import IdTokenizer
from tests.support.controls_oracle import next_logits
from tests.support.generation import CFG, MODEL, NEW, PARAMS, ROWS, SAMPLED, options

COUNTS = [3, 0, 20, 1]
# Measured 1.6e-4 at one position, where float32 logits are 1.8e-4 from those in float64, and
# 6.6e-6 at all others.
TOLERANCE = 1e-3
CHANGED = SAMPLED | {"repetition_penalty": 1.5, "banned_ids": [3, 5, 7]}


def slow_alternatives(prompt, tokens, count, temperature=1.0):
    """Return the most probable tokens before each new token, one step at a time."""
    found = []
    for n in range(len(tokens)):
        logits = next_logits(prompt + tokens[:n]).astype(np.float64) / temperature
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        best = sorted(range(len(logits)), key=lambda token: -logprobs[token])[:count]
        found.append([(token, logprobs[token]) for token in best])
    return found


def largest_difference(ours, want):
    """Return the largest difference of log-probabilities; infinite if the ids differ."""
    if [[n for n, _ in position] for position in ours] != [
        [n for n, _ in position] for position in want
    ]:
        return np.inf
    pairs = zip(sum(ours, []), sum(want, []), strict=True)  # noqa: RUF017
    return max((abs(a - b) for (_, a), (_, b) in pairs), default=0)


@pytest.mark.slow
@pytest.mark.parametrize("keywords", [{}, CHANGED], ids=["greedy", "changed"])
def test_alternatives_are_those_of_slow_numpy(keywords):
    out = generate(MODEL, PARAMS, ROWS, NEW, top_logprobs=COUNTS, **keywords)
    for prompt, tokens, count, ours in zip(ROWS, out.tokens, COUNTS, out.top_logprobs, strict=True):
        assert [len(position) for position in ours] == [count] * NEW
        want = slow_alternatives(prompt, tokens, count)
        assert largest_difference(ours, want) < TOLERANCE
        if count:
            hot = slow_alternatives(prompt, tokens, count, temperature=1.3)
            assert largest_difference(ours, hot) > 0.01
            early = slow_alternatives(prompt, [*tokens[1:], 0], count)
            assert largest_difference(ours, early) > 0.01
    plain = generate(MODEL, PARAMS, ROWS, NEW, **keywords)
    assert plain.top_logprobs is None
    assert (plain.tokens, plain.logprobs) == (out.tokens, out.logprobs)


@pytest.mark.slow
def test_the_sampled_token_has_the_same_log_probability_in_both():
    out = generate(MODEL, PARAMS, ROWS, NEW, top_logprobs=20)
    for logprobs, positions in zip(out.logprobs, out.top_logprobs, strict=True):
        assert logprobs == [position[0][1] for position in positions]  # greedy: the best token
        assert logprobs != [position[1][1] for position in positions]


def test_equally_probable_tokens_are_in_the_order_of_their_ids():
    params = PARAMS | {"out_head": {"weight": 0 * PARAMS["out_head"]["weight"]}}
    out = generate(MODEL, params, ROWS, NEW, top_logprobs=4)
    assert [n for n, _ in out.top_logprobs[2][5]] == [0, 1, 2, 3]


def test_all_numbers_share_one_program():
    generate(MODEL, PARAMS, ROWS, NEW, top_logprobs=1)
    before = DEFAULT_PROGRAMS.n_compilations()
    for counts in (2, COUNTS, [None, 20, 0, 0]):
        generate(MODEL, PARAMS, ROWS, NEW, top_logprobs=counts)
    assert DEFAULT_PROGRAMS.n_compilations() == before
    plans = [plan_generation(CFG, ROWS, NEW, GenerationOptions(top_logprobs=n)) for n in (None, 0)]
    assert [plan.n_alternatives for plan in plans] == [0, 0]


def test_rows_that_end_have_no_more_alternatives():
    free = generate(MODEL, PARAMS, ROWS, NEW).tokens
    out = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=[[free[0][4]], [], [], []], top_logprobs=2)
    assert list(map(len, out.top_logprobs)) == list(map(len, out.tokens))
    assert len(out.top_logprobs[0]) < NEW


@pytest.mark.slow
def test_alternatives_continue_past_the_context():
    out = generate(MODEL, PARAMS, ROWS, sliding_window=True, top_logprobs=3)
    want = slow_alternatives(ROWS[2], out.tokens[2], 3)
    assert len(want) == 64
    assert largest_difference(out.top_logprobs[2], want) < TOLERANCE


def test_a_text_has_the_alternatives_of_its_tokens():
    texts = [" ".join(map(str, row)) for row in ROWS]
    want = generate(MODEL, PARAMS, ROWS, NEW, top_logprobs=2)
    stop = [f" {want.tokens[0][6]}"]
    how = options(top_logprobs=2)
    outputs = generate_text(Generator(MODEL, PARAMS), texts, IdTokenizer(), NEW, how, stop=stop)
    for output, alternatives in zip(outputs, want.top_logprobs, strict=True):
        assert output.top_logprobs == alternatives[: len(output.tokens)]
    assert len(outputs[0].tokens) < NEW
    (plain, *_) = generate_text(Generator(MODEL, PARAMS), texts, IdTokenizer(), NEW, options())
    assert plain.top_logprobs is None


def test_a_stream_refuses_them():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        stream(MODEL, PARAMS, ROWS, NEW, options(top_logprobs=2))
    assert str(caught.value) == "a stream has no top_logprobs; leave it out, or use generate"
