"""`generate` gives the tokens of the course's loop in any batch, and compiles few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import generate, generate_text_simple
from obscura_jax.decoding.cache import bucket_length
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.request import plan_generation
from obscura_jax.decoding.run import run_plan
from obscura_jax.decoding.score import score
from tests.support.generation import CFG, KEY, MODEL, NEW, PARAMS, ROWS, SAMPLED, options, prompts
from tests.support.rounds import rounds


def course_loop(prompt: list[int], new: int) -> list[int]:
    out = generate_text_simple(MODEL, PARAMS, [prompt], new, CFG.context_length)
    return out[0, len(prompt) :].tolist()


@pytest.mark.slow
def test_random_prompts_get_the_tokens_of_the_course_loop():
    """Batches of 8 prompts of 1 to 47 tokens; the course's loop runs them without a cache."""
    rng = np.random.default_rng(1)
    lengths = rounds([1, 16, 17, 47], [1, 2, 7, 16, 17, 31, 33, 47])
    by_length: dict[int, list[list[int]]] = {}
    tokens = {}
    for batch in range(rounds(5, 25)):
        rows = prompts(*rng.choice(lengths, 8), seed=batch)
        for row, new in zip(rows, generate(MODEL, PARAMS, rows, 20).tokens, strict=True):
            by_length.setdefault(len(row), []).append(row)
            tokens[tuple(row)] = new
    for length, rows in by_length.items():
        out = np.asarray(generate_text_simple(MODEL, PARAMS, rows, 20, CFG.context_length))
        for row, full in zip(rows, out, strict=True):
            assert tokens[tuple(row)] == full[length:].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_prompt_gets_the_same_tokens_in_any_batch(settings):
    """Alone, in any row, next to longer and shorter rows, in a smaller and a larger cache."""
    alone = [generate(MODEL, PARAMS, [row], NEW, **settings).tokens[0] for row in ROWS]
    assert generate(MODEL, PARAMS, ROWS, NEW, **settings).tokens == alone
    assert generate(MODEL, PARAMS, ROWS[::-1], NEW, **settings).tokens == alone[::-1]
    assert generate(MODEL, PARAMS, [ROWS[0]] * 4, NEW, **settings).tokens == alone[:1] * 4
    larger = generate(MODEL, PARAMS, ROWS[:1], 60, **settings).tokens
    assert larger[0][:NEW] == alone[0]
    changed = [[(ROWS[0][0] + 1) % CFG.vocab_size, *ROWS[0][1:]], *ROWS[1:]]
    others = generate(MODEL, PARAMS, changed, NEW, **settings).tokens
    assert others[1:] == alone[1:]
    assert others[0] != alone[0]


@pytest.mark.slow
@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_each_row_is_sampled_alone_with_any_random_number_generator(generator):
    """Under `vmap` the draws of these generators depend on the batch."""
    rows = prompts(40, 40, 33, 47)
    rows[1] = rows[0]
    settings = SAMPLED | {"key": jax.random.key(5, impl=generator)}
    out = generate(MODEL, PARAMS, rows, 12, **settings).tokens
    assert out == [generate(MODEL, PARAMS, [row], 12, **settings).tokens[0] for row in rows]
    assert out[0] == out[1]
    with jax.default_prng_impl(generator):
        default = jax.random.key(5)
        assert generate(MODEL, PARAMS, rows, 12, **SAMPLED | {"key": default}).tokens == out
        assert generate(MODEL, PARAMS, rows, 12).tokens != out  # greedy, without a key
    other = SAMPLED | {"key": jax.random.key(6, impl=generator)}
    assert generate(MODEL, PARAMS, rows, 12, **other).tokens != out
    twice = jnp.stack([settings["key"]] * 2)
    with jax.debug_key_reuse(False):
        mapped = jax.vmap(lambda key: jax.random.gumbel(key, (3,)))(twice)
    assert (mapped[0] != mapped[1]).any()  # as the docstring says


CONTROLLED = {
    "repetition_penalty": [1.5, 1.0],
    "frequency_penalty": 0.3,
    "presence_penalty": 0.2,
    "logit_bias": {3: 2.0},
    "banned_ids": [5, 7],
    "stop_ids": [9],
    "min_new_tokens": 6,
}
CONFIGURATIONS = {
    "x64": lambda: jax.enable_x64(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "precision": lambda: jax.default_matmul_precision("highest"),
    "device": lambda: jax.default_device(jax.devices("cpu")[0]),
    "no jit": jax.disable_jit,
    "NaN checks": lambda: jax.debug_nans(True),
    "infinity checks": lambda: jax.debug_infs(True),
    "leak checks": jax.checking_leaks,
}


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize(
    "settings", [{}, SAMPLED, CONTROLLED], ids=["greedy", "sampled", "controlled"]
)
def test_jax_settings_do_not_change_tokens(configuration, settings):
    rows = prompts(64, 3)  # four tokens with the cache, two without
    plain = generate(MODEL, PARAMS, rows, 6, sliding_window=True, **settings)
    scored = score(MODEL, PARAMS, rows)
    with configuration():
        again = generate(MODEL, PARAMS, rows, 6, sliding_window=True, **settings)
        rescored = score(MODEL, PARAMS, rows)
    assert again.tokens == plain.tokens
    assert rescored.tokens == scored.tokens
    # Measured: 8.6e-6 without jit, less elsewhere.
    np.testing.assert_allclose(rescored.logprobs[0], scored.logprobs[0], rtol=0, atol=3e-5)
    other = {"temperature": 2.0, "key": jax.random.key(9)}
    assert generate(MODEL, PARAMS, rows, 6, sliding_window=True, **other).tokens != plain.tokens


def test_tokens_are_the_same_with_and_without_a_cache():
    """`slide` runs the model on all tokens at each step; inside the context nothing changes."""
    rows = prompts(66, 3)
    cached = generate(MODEL, PARAMS, rows[1:], 60, **SAMPLED).tokens[0]
    # Next to a row of 66 tokens, only the first two tokens are sampled with the cache.
    slid = generate(MODEL, PARAMS, rows, 75, sliding_window=True, **SAMPLED).tokens[1]
    assert slid[:60] == cached
    other = SAMPLED | {"key": jax.random.key(6)}
    assert generate(MODEL, PARAMS, rows, 75, sliding_window=True, **other).tokens[1] != slid


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(3, 60), (67, 3), (66, 66), (80, 3), (3, 33)])
def test_sliding_gives_the_tokens_of_the_course_loop(lengths):
    rows = prompts(*lengths)
    out = generate(MODEL, PARAMS, rows, 75, sliding_window=True)
    assert out.tokens == [course_loop(row, 75) for row in rows]


@pytest.mark.slow
def test_more_tokens_than_fit_are_an_error():
    message = r"60 prompt tokens \+ 8 new tokens exceed the context of 67 tokens; request at most 7"
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, prompts(3, 60), 8)
    assert len(generate(MODEL, PARAMS, prompts(3, 60), 7).tokens[1]) == 7


@pytest.mark.slow
@pytest.mark.parametrize(("lengths", "count"), [((3, 60), 7), ((1,), 64), ((3,), 64), ((4,), 63)])
def test_the_default_length_fits_in_the_context(lengths, count):
    rows = prompts(*lengths)
    assert plan_generation(CFG, rows, None).new_tokens == count
    assert plan_generation(CFG, rows, None, options(sliding_window=True)).new_tokens == 64
    if lengths in ((3, 60), (4,)):
        out = generate(MODEL, PARAMS, rows)
        assert [len(row) for row in out.tokens] == [count] * len(rows)
        assert out.tokens == generate(MODEL, PARAMS, rows, count).tokens


def test_a_prompt_that_fills_the_context_is_an_error():
    message = r"a prompt of 67 tokens fills the context of 67 tokens; shorten it, or pass sliding"
    for new in (None, 1, 64):
        with pytest.raises(ValueError, match=message):
            generate(MODEL, PARAMS, prompts(3, 67), new)
        with pytest.raises(ValueError, match=r"of 68 tokens exceeds the context of 67 tokens"):
            generate(MODEL, PARAMS, prompts(68), new)
    assert [len(row) for row in generate(MODEL, PARAMS, prompts(3, 66)).tokens] == [1, 1]


def test_stop_ids_end_their_own_row():
    free = generate(MODEL, PARAMS, ROWS, NEW).tokens
    stops = [[free[0][4]], [], [free[2][7], free[2][2]], [free[3][-1]]]
    out = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=stops)
    outputs = zip(free, stops, out.tokens, out.finish_reasons, strict=True)
    for row, stop, tokens, reason in outputs:
        ends = [n for n, token in enumerate(row) if token in stop]
        assert tokens == row[: ends[0] if ends else NEW]
        assert reason == ("stop" if ends else "length")
    everywhere = generate(MODEL, PARAMS, ROWS, NEW, stop_ids=[free[0][0]])
    assert everywhere.tokens[0] == []
    assert everywhere.finish_reasons[0] == "stop"


def test_the_loop_ends_with_the_last_row():
    rows = ROWS[2:3] * 4
    free = generate(MODEL, PARAMS, rows, NEW).tokens[0]
    counts = []
    for stop_ids in ([free[9]], [[free[9]], [], [], []]):
        plan = plan_generation(CFG, rows, NEW, options(stop_ids=stop_ids))
        *_, state = run_plan(MODEL, PARAMS, plan, DEFAULT_PROGRAMS, tokens_per_chunk=60)
        counts.append(int(state.count))
    assert counts == [free.index(free[9]) + 1, NEW]


def test_log_probabilities_are_the_models():
    out = generate(MODEL, PARAMS, ROWS, NEW, **SAMPLED)
    full = [row + tokens for row, tokens in zip(ROWS, out.tokens, strict=True)]
    padded = np.array([ids + [0] * (60 - len(ids)) for ids in full])
    tables = jax.nn.log_softmax(jax.jit(MODEL.apply)({"params": PARAMS}, padded))
    for row, tokens, logprobs, table in zip(ROWS, out.tokens, out.logprobs, tables, strict=True):
        expected = [float(table[len(row) + n - 1, token]) for n, token in enumerate(tokens)]
        np.testing.assert_allclose(logprobs, expected, atol=4e-6)  # measured 9.6e-7
        shifted = [float(table[len(row) + n - 2, token]) for n, token in enumerate(tokens)]
        assert np.abs(np.subtract(logprobs, shifted)).max() > 0.01


def test_each_row_has_its_own_settings():
    rows = prompts(40, 40, 40, 40)
    settings = [
        {},
        {"temperature": 1.0, "top_k": 3, "key": KEY},
        {"temperature": 2.0, "top_p": 0.5, "key": KEY},
        {"temperature": 2.0, "min_p": 0.2, "key": KEY},
    ]
    one_by_one = [
        generate(MODEL, PARAMS, [row], NEW, **own).tokens[0]
        for row, own in zip(rows, settings, strict=True)
    ]
    together = generate(
        MODEL,
        PARAMS,
        rows,
        NEW,
        temperature=[0.0, 1.0, 2.0, 2.0],
        top_k=[None, 3, None, None],
        top_p=[None, None, 0.5, None],
        min_p=[None, None, None, 0.2],
        key=KEY,
    )
    assert together.tokens == one_by_one


def test_each_row_may_have_its_own_key():
    row = prompts(40)[0]
    keys = jax.random.split(jax.random.key(7), 4)
    out = generate(MODEL, PARAMS, [row] * 4, NEW, temperature=1.0, key=keys).tokens
    again = [
        generate(MODEL, PARAMS, [row], NEW, temperature=1.0, key=key).tokens[0] for key in keys
    ]
    assert out == again
    assert out[0] != out[1]


@pytest.mark.slow
def test_only_another_batch_size_compiles_within_a_bucket():
    """Lengths, settings, keys, stop ids and the number of new tokens vary."""
    generate(MODEL, PARAMS, ROWS, NEW)
    before = DEFAULT_PROGRAMS.n_compilations()
    for n, lengths in enumerate([(33, 1, 2, 3), (40, 18, 40, 40), (20, 35, 1, 9), (1, 30, 17, 36)]):
        for settings in (
            {},
            SAMPLED,
            {"temperature": [0.0, 0.7, 1.0, 0.0], "top_k": [1, None, 3, 4], "key": KEY},
        ):
            stops = [[3], [4, 5, 6], [], [1]] if n % 2 else ()
            rows = prompts(*lengths, seed=n)
            out = generate(MODEL, PARAMS, rows, 15 + 3 * n, stop_ids=stops, **settings)
            assert out.stats.n_compilations == 0
    assert DEFAULT_PROGRAMS.n_compilations() == before
    assert generate(MODEL, PARAMS, prompts(*[33] * 5), NEW).stats.n_compilations == 2


def test_lengths_are_rounded_up_to_buckets():
    assert [bucket_length(n) for n in (1, 16, 17, 500, 513, 769, 1024, 1025)] == [
        *(16, 16, 32, 512, 768, 1024, 1024, 1536)
    ]
    assert bucket_length(600, limit=700) == 700


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_but_not_equal():
    half = generate(MODEL, PARAMS, ROWS, NEW, dtype=jnp.bfloat16)
    full = generate(MODEL, PARAMS, ROWS, NEW, dtype=jnp.float32)
    error = abs(half.logprobs[0][0] - full.logprobs[0][0])
    assert 1e-6 < error < 0.1
    alone = generate(MODEL, PARAMS, ROWS[:1], NEW, dtype=jnp.bfloat16)
    assert len(alone.tokens[0]) == len(half.tokens[0]) == NEW


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": []}, "the batch is empty"),
        ({"prompts": [[1], []]}, "prompt 1: the prompt is empty"),
        ({"prompts": [[1], [61]]}, r"prompt 1: token id 61 is outside the vocabulary, 0\.\.60"),
        ({"prompts": [[-1]]}, "prompt 0: token id -1 is outside"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1"),
        ({"temperature": -1.0, "key": KEY}, "temperature"),
        ({"temperature": float("nan"), "key": KEY}, "temperature"),
        ({"temperature": 1.0}, "needs a key"),
        ({"temperature": [0.0, 1.0]}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 62}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": 1.0}, "min_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"stop_ids": [61]}, "stop_ids: token id 61"),
        ({"stop_ids": 5}, "stop_ids must be a list"),
        ({"dtype": "int8"}, "dtype must be one of bfloat16, float16, float32"),
        ({"dtype": "int3"}, "dtype must be one of bfloat16, float16, float32"),
        ({"stop_ids": [[1], [2], [3]]}, "stop_ids has 3 lists for 1 rows; give one per row"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "typed key"),
        ({"key": jax.random.split(jax.random.key(7), 3)}, "key must be one key, or 1 "),
    ],
)
def test_bad_input_is_an_error_that_names_it(changes, message):
    arguments = {"prompts": [[1, 2]], "max_new_tokens": 3} | changes
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, **arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_damaged_weights_are_an_error(value):
    scale = PARAMS["final_norm"]["scale"].at[3].set(value)
    params = PARAMS | {"final_norm": PARAMS["final_norm"] | {"scale": scale}}
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        generate(MODEL, params, prompts(4), 20)
