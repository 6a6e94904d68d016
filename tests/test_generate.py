"""`generate`: token for token the oracle, whoever the neighbours are, in a few programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from obscura_jax import GPTConfig, GPTModel, generate, generate_text_simple
from obscura_jax.decoding.cache import bucket
from obscura_jax.decoding.programs import DEFAULT_PROGRAMS
from obscura_jax.decoding.request import plan, run
from obscura_jax.decoding.score import score
from obscura_jax.rng.torch_generator import torch_seed_init

CFG = GPTConfig(
    vocab_size=61,
    context_length=67,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.1,
    qkv_bias=True,
)
MODEL = GPTModel(CFG)
# Fresh weights hardly attend: their next token is that of the last token alone, and a wrong cache
# would go unnoticed. Six times larger ones look back.
PARAMS = torch_seed_init(CFG, 123)
PARAMS["trf_blocks"] = jax.tree.map(lambda leaf: 6 * leaf, PARAMS["trf_blocks"])
KEY = jax.random.key(5)
SAMPLED = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "key": KEY}


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, CFG.vocab_size, n).tolist() for n in lengths]


def oracle(prompt: list[int], new: int) -> list[int]:
    out = generate_text_simple(MODEL, PARAMS, [prompt], new, CFG.context_length)
    return out[0, len(prompt) :].tolist()


def test_the_oracle_on_200_random_prompts():
    """Ragged batches of 8, lengths 1 to 47; the oracle runs each prompt alone, without a cache."""
    rng = np.random.default_rng(1)
    by_length: dict[int, list[list[int]]] = {}
    got = {}
    for batch in range(25):
        rows = prompts(*rng.choice([1, 2, 7, 16, 17, 31, 33, 47], 8), seed=batch)
        for row, new in zip(rows, generate(MODEL, PARAMS, rows, 20).tokens, strict=True):
            by_length.setdefault(len(row), []).append(row)
            got[tuple(row)] = new
    for length, rows in by_length.items():
        out = np.asarray(generate_text_simple(MODEL, PARAMS, rows, 20, CFG.context_length))
        for row, full in zip(rows, out, strict=True):
            assert got[tuple(row)] == full[length:].tolist()


@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_a_prompt_keeps_its_tokens_in_any_company(settings):
    """Alone, in any row, beside longer and shorter rows, in another bucket: the same tokens."""
    rows = prompts(5, 1, 40, 17)
    alone = [generate(MODEL, PARAMS, [row], 20, **settings).tokens[0] for row in rows]
    assert generate(MODEL, PARAMS, rows, 20, **settings).tokens == alone
    assert generate(MODEL, PARAMS, rows[::-1], 20, **settings).tokens == alone[::-1]
    assert generate(MODEL, PARAMS, [rows[0]] * 3, 20, **settings).tokens == alone[:1] * 3
    longer = generate(MODEL, PARAMS, rows[:2], 60, **settings).tokens  # a larger allocation
    assert [row[:20] for row in longer] == alone[:2]
    changed = [[(rows[0][0] + 1) % CFG.vocab_size, *rows[0][1:]], *rows[1:]]
    others = generate(MODEL, PARAMS, changed, 20, **settings).tokens
    assert others[1:] == alone[1:]
    assert others[0] != alone[0]


@pytest.mark.parametrize("generator", ["rbg", "unsafe_rbg"])
def test_any_generator_of_random_numbers_draws_each_row_alone(generator):
    """Under `vmap` the draws of these generators depend on the batch, so each row has its own."""
    rows = prompts(5, 5, 20)
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
    assert (mapped[0] != mapped[1]).any()  # the reason for all this


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


@pytest.mark.parametrize("configuration", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
@pytest.mark.parametrize("settings", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_no_configuration_of_jax_changes_a_token(configuration, settings):
    rows = prompts(60, 3)
    plain = generate(MODEL, PARAMS, rows, 10, sliding_window=True, **settings)
    scored = score(MODEL, PARAMS, rows)
    with configuration():
        again = generate(MODEL, PARAMS, rows, 10, sliding_window=True, **settings)
        rescored = score(MODEL, PARAMS, rows)
    assert again.tokens == plain.tokens
    assert rescored.tokens == scored.tokens
    # Measured: 8.6e-6 without jit, less elsewhere.
    np.testing.assert_allclose(rescored.logprobs[0], scored.logprobs[0], rtol=0, atol=3e-5)
    other = {"temperature": 2.0, "key": jax.random.key(9)}
    assert generate(MODEL, PARAMS, rows, 10, sliding_window=True, **other).tokens != plain.tokens


def test_sampling_without_a_cache_is_the_same():
    """`slide` re-reads everything at each step; below the context it draws the cached tokens."""
    rows = prompts(66, 3)
    cached = generate(MODEL, PARAMS, rows[1:], 40, **SAMPLED).tokens[0]
    # With a row of 66 tokens only two tokens come out of the cache; the others are re-read.
    assert generate(MODEL, PARAMS, rows, 40, sliding_window=True, **SAMPLED).tokens[1] == cached
    other = SAMPLED | {"key": jax.random.key(6)}
    assert generate(MODEL, PARAMS, rows, 40, sliding_window=True, **other).tokens[1] != cached


@pytest.mark.parametrize("lengths", [(3, 60), (67, 20), (66, 66), (80, 2), (1,)])
def test_sliding_is_the_course(lengths):
    rows = prompts(*lengths)
    out = generate(MODEL, PARAMS, rows, 75, sliding_window=True)
    assert out.tokens == [oracle(row, 75) for row in rows]


def test_past_the_end_is_an_error():
    message = r"60 prompt tokens \+ 8 new tokens exceed the context of 67 tokens; request at most 7"
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, prompts(3, 60), 8)
    assert len(generate(MODEL, PARAMS, prompts(3, 60), 7).tokens[1]) == 7


@pytest.mark.parametrize(("lengths", "count"), [((3, 60), 7), ((1,), 64), ((3,), 64), ((4,), 63)])
def test_as_many_tokens_as_fit_are_generated_by_default(lengths, count):
    rows = prompts(*lengths)
    out = generate(MODEL, PARAMS, rows)
    assert [len(row) for row in out.tokens] == [count] * len(rows)
    assert out.tokens == generate(MODEL, PARAMS, rows, count).tokens
    assert [len(row) for row in generate(MODEL, PARAMS, rows, sliding_window=True).tokens] == [
        64
    ] * len(rows)


def test_a_prompt_that_fills_the_context_is_an_error():
    message = r"a prompt of 67 tokens fills the context of 67 tokens; shorten it, or pass sliding"
    for new in (None, 1, 64):
        with pytest.raises(ValueError, match=message):
            generate(MODEL, PARAMS, prompts(3, 67), new)
        with pytest.raises(ValueError, match=r"of 68 tokens exceeds the context of 67 tokens"):
            generate(MODEL, PARAMS, prompts(68), new)
    assert [len(row) for row in generate(MODEL, PARAMS, prompts(3, 66)).tokens] == [1, 1]


def test_stop_ids_are_per_row():
    rows = prompts(5, 9, 3)
    free = generate(MODEL, PARAMS, rows, 30).tokens
    stops = [[free[0][4]], [], [free[2][7], free[2][2]]]
    out = generate(MODEL, PARAMS, rows, 30, stop_ids=stops)
    for row, stop, tokens, finish in zip(free, stops, out.tokens, out.finish, strict=True):
        ends = [n for n, token in enumerate(row) if token in stop]
        assert tokens == row[: ends[0] if ends else 30]
        assert finish == ("stop" if ends else "length")
    everywhere = generate(MODEL, PARAMS, rows, 30, stop_ids=[free[0][0]])
    assert everywhere.tokens[0] == []
    assert everywhere.finish[0] == "stop"


def test_the_loop_ends_with_the_last_row():
    row = prompts(5)[0]
    free = generate(MODEL, PARAMS, [row], 60).tokens[0]
    *_, state = run(plan(MODEL, PARAMS, [row] * 2, 60, stop_ids=[free[9]]), tokens_per_chunk=60)
    assert state.count == free.index(free[9]) + 1
    *_, state = run(
        plan(MODEL, PARAMS, [row] * 2, 60, stop_ids=[[free[9]], []]), tokens_per_chunk=60
    )
    assert state.count == 60


def test_log_probabilities_are_the_models():
    rows = prompts(5, 12)
    out = generate(MODEL, PARAMS, rows, 15, **SAMPLED)
    for row, tokens, logprobs in zip(rows, out.tokens, out.logprobs, strict=True):
        logits = MODEL.apply({"params": PARAMS}, jnp.asarray([row + tokens]))
        table = jax.nn.log_softmax(logits[0].astype(jnp.float32))
        expected = [float(table[len(row) + n - 1, token]) for n, token in enumerate(tokens)]
        np.testing.assert_allclose(logprobs, expected, atol=4e-6)  # measured 9.6e-7
        shifted = [float(table[len(row) + n - 2, token]) for n, token in enumerate(tokens)]
        assert np.abs(np.subtract(logprobs, shifted)).max() > 0.01


def test_settings_per_row():
    rows = prompts(4, 4, 4)
    one_by_one = [
        generate(MODEL, PARAMS, rows[:1], 20).tokens[0],
        generate(MODEL, PARAMS, rows[1:2], 20, temperature=1.0, top_k=3, key=KEY).tokens[0],
        generate(MODEL, PARAMS, rows[2:], 20, temperature=2.0, top_p=0.5, key=KEY).tokens[0],
    ]
    together = generate(
        MODEL,
        PARAMS,
        rows,
        20,
        temperature=[0.0, 1.0, 2.0],
        top_k=[None, 3, None],
        top_p=[None, None, 0.5],
        key=KEY,
    )
    assert together.tokens == one_by_one


def test_a_key_for_each_row():
    row = prompts(6)[0]
    keys = jax.random.split(jax.random.key(7), 3)
    out = generate(MODEL, PARAMS, [row] * 3, 20, temperature=1.0, key=keys).tokens
    again = [generate(MODEL, PARAMS, [row], 20, temperature=1.0, key=key).tokens[0] for key in keys]
    assert out == again
    assert out[0] != out[1]


def test_compile_budget():
    """Within a bucket nothing that a caller can change, but the batch size, compiles anew."""
    generate(MODEL, PARAMS, prompts(17, 20), 20)
    before = DEFAULT_PROGRAMS.compiled()
    for n, lengths in enumerate([(17, 17), (32, 18), (20, 31), (1, 30)]):
        for settings in ({}, SAMPLED, {"temperature": [0.0, 0.7], "top_k": [1, None], "key": KEY}):
            stops = [[3], [4, 5, 6]] if n % 2 else ()
            new = 20 + 3 * n
            out = generate(
                MODEL, PARAMS, prompts(*lengths, seed=n), new, stop_ids=stops, **settings
            )
            assert out.stats.compiled == 0
    assert DEFAULT_PROGRAMS.compiled() == before
    another_batch_size = prompts(*[17] * 11)
    assert generate(MODEL, PARAMS, another_batch_size, 20).stats.compiled == 2


def test_buckets():
    assert [bucket(n) for n in (1, 16, 17, 500, 513, 769, 1024, 1025)] == [
        *(16, 16, 32, 512, 768, 1024, 1024, 1536)
    ]
    assert bucket(600, limit=700) == 700


def test_bfloat16():
    """Computed in bfloat16, logits in float32: near the float32 log-probabilities, not equal."""
    rows = prompts(9, 4)
    half = generate(MODEL, PARAMS, rows, 8, dtype=jnp.bfloat16)
    full = generate(MODEL, PARAMS, rows, 8, dtype=jnp.float32)
    error = abs(half.logprobs[0][0] - full.logprobs[0][0])
    assert 1e-6 < error < 0.1
    alone = generate(MODEL, PARAMS, rows[:1], 8, dtype=jnp.bfloat16)
    assert len(alone.tokens[0]) == len(half.tokens[0]) == 8


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
        ({"stop_ids": [[1], [2], [3]]}, "stop_ids has 3 lists for 1 rows"),
        ({"key": jnp.zeros(2, jnp.uint32)}, "typed key"),
        ({"key": jax.random.split(jax.random.key(7), 3)}, "key must be one key or 1"),
    ],
)
def test_bad_input(changes, message):
    arguments = {"prompts": [[1, 2]], "max_new_tokens": 3} | changes
    with pytest.raises(ValueError, match=message):
        generate(MODEL, PARAMS, **arguments)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_weights_are_an_error_not_token_0(value):
    scale = PARAMS["final_norm"]["scale"].at[3].set(value)
    params = PARAMS | {"final_norm": PARAMS["final_norm"] | {"scale": scale}}
    with pytest.raises(ValueError, match="logits are NaN or infinite"):
        generate(MODEL, params, prompts(4), 20)
