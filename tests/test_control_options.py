"""`obscura generate` passes controls on, prints top log-probabilities, and names bad values."""

import json

import pytest

from obscura_jax import GPTConfig, generate, load_model, save_model
from obscura_jax.cli.main import main
from obscura_jax.rng.torch_generator import torch_seed_init
from obscura_jax.text.tokenizers import gpt2_tokenizer
from tests.support.generation import CFG, PARAMS

TOKENIZER = gpt2_tokenizer()


@pytest.fixture(scope="module")
def ids_model(tmp_path_factory):
    """Return the folder of a model without a tokenizer."""
    folder = tmp_path_factory.mktemp("ids") / "model"
    save_model(folder, CFG, PARAMS)
    return str(folder)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """Return the folder of a model with GPT-2's tokens."""
    folder = tmp_path_factory.mktemp("text") / "model"
    cfg = GPTConfig(50257, 64, 8, 2, 1, 0.1, False)
    save_model(folder, cfg, torch_seed_init(cfg, 7))
    return str(folder)


@pytest.fixture
def says(capsys):
    """Run `generate` with --json; return the object of its only prompt."""

    def run(*words):
        main(["generate", *map(str, words), "--json", "--no-compile-cache"])
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return run


@pytest.fixture
def fails(capsys):
    """Run `generate`, which must end with code 2 and one line; return the line."""

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main(["generate", *map(str, words), "--no-compile-cache"])
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
        return err.rstrip("\n")

    return run


OPTIONS = {
    ("--repetition-penalty", 1.7): {"repetition_penalty": 1.7},
    ("--frequency-penalty", 2.5): {"frequency_penalty": 2.5},
    ("--presence-penalty", 1.5): {"presence_penalty": 1.5},
    ("--bias", "19=-4", "--bias", "35=0.5"): {"logit_bias": {19: -4, 35: 0.5}},
    ("--ban", 19, "--ban", "31"): {"banned_ids": [19, 31]},
}


@pytest.mark.slow
@pytest.mark.parametrize("words", OPTIONS, ids=lambda words: words[0])
def test_an_option_is_the_control_of_its_name(words, ids_model, says):
    prompt = [5, 3, 8, 19]
    common = ("5 3 8 19", "--ids", "--model", ids_model, "--max-new-tokens", 20)
    model, params = load_model(ids_model)
    printed = says(*common, *words)
    assert printed["tokens"] == generate(model, params, [prompt], 20, **OPTIONS[words]).tokens[0]
    assert printed["tokens"] != generate(model, params, [prompt], 20).tokens[0]
    assert "top_logprobs" not in printed


@pytest.mark.slow
def test_text_names_a_token(text_model, says):
    common = ("Hello", "--model", text_model, "--max-new-tokens", 6)
    plain = says(*common)
    first = TOKENIZER.decode(plain["tokens"][:1])
    assert says(*common, "--ban", first)["tokens"][0] != plain["tokens"][0]
    world = TOKENIZER.encode(" world")[0]
    assert says(*common, "--bias", " world=100")["tokens"] == [world] * 6
    equals = TOKENIZER.encode("=")[0]
    assert says(*common, "--bias", "==100")["tokens"] == [equals] * 6


@pytest.mark.slow
def test_the_first_tokens_ignore_stop_strings(text_model, says):
    common = ("Hello", "--model", text_model, "--max-new-tokens", 9)
    plain = says(*common)
    third = TOKENIZER.decode(plain["tokens"][2:3])
    assert third not in TOKENIZER.decode(plain["tokens"][:2])
    stopped = says(*common, "--stop", third)
    assert stopped["finish"] == "stop"
    later = says(*common, "--stop", third, "--min-new-tokens", 3)
    assert later["text"].startswith(TOKENIZER.decode(plain["tokens"][:3]))
    assert not stopped["text"].startswith(TOKENIZER.decode(plain["tokens"][:3]))
    assert says(*common, "--stop", third, "--min-new-tokens", 2)["text"] == stopped["text"]


@pytest.mark.slow
def test_top_log_probabilities_are_in_the_json(text_model, says):
    printed = says("Hello", "--model", text_model, "--max-new-tokens", 4, "--top-logprobs", 3)
    model, params = load_model(text_model)
    prompt = TOKENIZER.encode("Hello")
    want = generate(model, params, [prompt], 4, top_logprobs=3)
    assert printed["top_logprobs"] == [
        [{"token": n, "text": TOKENIZER.decode([n]), "logprob": x} for n, x in position]
        for position in want.top_logprobs[0]
    ]
    assert [position[0]["token"] for position in printed["top_logprobs"]] == printed["tokens"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repetition-penalty", "nan"], "repetition_penalty must be a number from 0.01 to 100"),
        (["--repetition-penalty", "0"], "repetition_penalty must be a number from 0.01 to 100"),
        (["--frequency-penalty", "inf"], "frequency_penalty must be a number from -100 to 100"),
        (["--presence-penalty", "-101"], "presence_penalty must be a number from -100 to 100"),
        (["--presence-penalty", "x"], "argument --presence-penalty: invalid float value: 'x'"),
        (["--bias", "61=1"], "logit_bias: token id 61 is outside the vocabulary, 0..60"),
        (["--bias", "5=nan"], "logit_bias of token 5 must be a number from -100 to 100, got nan"),
        (["--bias", "5"], "argument --bias: must be TOKEN=VALUE, such as ' the=-2', got '5'"),
        (["--bias", "5=x"], "argument --bias: must be TOKEN=VALUE, such as ' the=-2', got '5=x'"),
        (["--bias", "5 6=1"], "'5 6' is 2 tokens; give the text of exactly one token"),
        (["--ban", "61"], "banned_ids: token id 61 is outside the vocabulary, 0..60"),
        (["--ban", "x"], "'x' is not a list of token ids; give numbers, such as '1 2'"),
        (
            ["--min-new-tokens", "0"],
            "argument --min-new-tokens: must be a whole number of",
        ),
        (["--min-new-tokens", "4"], "min_new_tokens=4 exceeds the maximum of 3 new tokens; lower"),
        (["--top-logprobs", "21", "--json"], "top_logprobs must be a whole number from 0 to 20"),
        (["--top-logprobs", "3"], "--top-logprobs adds to the JSON; give --json too"),
    ],
)
def test_bad_values_are_named(words, message, ids_model, fails):
    common = ("1 2", "--ids", "--model", ids_model, "--max-new-tokens", 3)
    assert fails(*common, *words).startswith(f"obscura generate: {message}")


def test_text_that_is_not_one_token_is_named(text_model, fails):
    common = ("Hello", "--model", text_model)
    line = fails(*common, "--ban", " hello world")
    assert line.endswith("' hello world' is 2 tokens; give the text of exactly one token")
    assert "'' is 0 tokens" in fails(*common, "--ban", "")
