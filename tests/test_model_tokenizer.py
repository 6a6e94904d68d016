"""A model uses its own tokenizer, GPT-2's, an announced guess, or plain token ids."""

import json
import pickle
from pathlib import Path

import pytest
import torch

from obscura_jax import generate, load_model, load_tokenizer, save_model, score, stream_text
from obscura_jax.cli.main import main
from obscura_jax.interop.checkpoint import read_checkpoint, save_nanogpt
from obscura_jax.interop.model_tokenizer import IdTokenizer
from obscura_jax.interop.tokens import TokenRecord, gpt2_record
from obscura_jax.text.tokenizers import END_OF_TEXT, gpt2_tokenizer
from tests.support.tokenizer_folders import (
    TEXTS,
    auto_tokenizer,
    bpe,
    config,
    gpt2_definition,
    hf_folder,
    weights,
    write_json,
)

PROMPT = "Hello, I am"


@pytest.fixture(scope="module")
def trained():
    return bpe(400)


@pytest.fixture
def own(tmp_path, trained):
    """A Hugging Face folder of 400 tokens with a tokenizer.json of its own."""
    folder = hf_folder(tmp_path / "own", 400, bos_token_id=0, eos_token_id=0)
    trained.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def called(capsys):
    """Return a function that runs a command, which must succeed, and returns its output."""

    def run(*words):
        capsys.readouterr()
        main([*map(str, words), *["--no-compile-cache"] * (words[0] == "generate")])
        return capsys.readouterr()

    return run


@pytest.fixture
def fails(capsys):
    """Return a function that runs a command, which must end with code 2 and one line."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words), *["--no-compile-cache"] * (words[0] == "generate")])
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1), err
        return err.rstrip("\n")

    return run


def info(called, source):
    lines = [line.split(maxsplit=1) for line in called("info", source).out.splitlines()]
    return {words[0]: words[-1] for words in lines}


# A tokenizer of its own.


@pytest.mark.slow
@pytest.mark.parametrize("form", ["tokenizer.json", "vocab.json"])
def test_every_form_of_a_model_uses_its_own_tokenizer(own, trained, called, form):
    """The commands print the text that transformers' tokenizer makes of our ids."""
    if form == "vocab.json":
        (own / "tokenizer.json").unlink()
        trained.model.save(str(own))
    theirs = auto_tokenizer(own)
    model, params = load_model(own)
    ids = theirs.encode(PROMPT)
    tokens = generate(model, params, [ids], 6).tokens[0]
    text = theirs.decode(ids + tokens)
    words = ("generate", PROMPT, "--max-new-tokens", 6, "--model")
    assert called(*words, own) == (f"{text}\n", "")
    native, back, exported = (own.with_name(name) for name in ("native", "back", "exported"))
    called("convert", own, native)
    called("convert", native, back, "--to", "hf")
    called("export", back, exported, "--platforms", "cpu")
    for folder in (native, back, exported):
        made = json.loads(called(*words, folder, "--json").out)
        assert (made["tokens"], made["prompt"] + made["text"]) == (tokens, text)
        assert info(called, folder)["tokenizer"] == f"its own ({form})"
        assert load_tokenizer(folder, model.cfg).encode(PROMPT) == ids
        assert load_tokenizer(folder, model.cfg).eos_token_id == 0
    assert [auto_tokenizer(back).encode(text) for text in TEXTS] == [
        theirs.encode(text) for text in TEXTS
    ]
    by_gpt2 = gpt2_tokenizer(400).encode(PROMPT)
    assert generate(model, params, [by_gpt2], 6).tokens[0] != tokens  # which earlier versions used


@pytest.mark.slow
def test_streams_and_scores_take_any_tokenizer(own):
    model, params = load_model(own)
    theirs, ours = auto_tokenizer(own), load_tokenizer(own, model.cfg)
    ids = theirs.encode(PROMPT)
    expected = theirs.decode(generate(model, params, [ids], 6).tokens[0])
    rows = score(model, params, [ids])
    for tokenizer in (ours, theirs, theirs.backend_tokenizer):
        pieces = stream_text(model, params, [PROMPT], tokenizer, 6)
        assert "".join(piece for (piece,) in pieces) == expected
        assert score(model, params, [PROMPT], tokenizer=tokenizer) == rows
    pieces = stream_text(model, params, [PROMPT], gpt2_tokenizer(400), 6)
    assert "".join(piece for (piece,) in pieces) != expected
    assert score(model, params, [PROMPT], tokenizer=gpt2_tokenizer(400)) != rows
    with pytest.raises(ValueError, match=r"a model of 400 tokens is unknown; pass tokenizer="):
        score(model, params, [PROMPT])


def test_gpt2s_first_tokens_are_recognized(tmp_path, called):
    folder = hf_folder(tmp_path / "m", 300)
    write_json(folder / "tokenizer.json", gpt2_definition(300))
    assert info(called, folder)["tokenizer"] == "GPT-2's (tokenizer.json)"
    out, err = called("generate", PROMPT, "--model", folder, "--max-new-tokens", 2)
    assert (out.startswith(PROMPT), err) == (True, "")
    assert load_tokenizer(folder, config(300)).encode(TEXTS[2])[-1] == 299


@pytest.mark.slow
def test_the_tokenizer_of_another_model_is_refused(tmp_path, trained, fails, called):
    folder = hf_folder(tmp_path / "m", 300)
    words = ("generate", PROMPT, "--model", folder)
    trained.save(str(folder / "tokenizer.json"))
    message = "tokenizer.json has ids up to 399, but the model has only 300 tokens; use"
    assert message in fails(*words)
    write_json(folder / "tokenizer.json", gpt2_definition(301))
    assert "has ids up to 300" in fails(*words)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer.json is not JSON" in fails(*words)
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"x")
    assert "has its tokenizer in spiece.model, which obscura_jax cannot read" in fails(*words)
    assert info(called, folder)["tokenizer"].startswith("none: ")
    assert called(*words[:1], "1 2", *words[2:], "--ids").err == ""


# GPT-2's, recorded or assumed.


@pytest.mark.slow
@pytest.mark.parametrize("size", [50257, 50304, 51200])
def test_a_model_of_gpt2s_size_is_assumed_to_use_its_tokens(tmp_path, called, size):
    save_model(tmp_path / "m", config(size, 16), weights(size, 16))
    found = load_tokenizer(tmp_path / "m", config(size, 16))
    assert found.encode(TEXTS[2]) == gpt2_tokenizer().encode(TEXTS[2], allowed_special="all")
    assert (found.eos_token_id, found.notice) == (50256, "")
    assert info(called, tmp_path / "m")["tokenizer"] == (
        f"GPT-2's, assumed for a model of {size} tokens"
    )
    assert called("generate", PROMPT, "--model", tmp_path / "m").err == ""
    cfg = config(size, 16)
    ids = found.encode("the cat")
    assert score(load_model(tmp_path / "m")[0], weights(size, 16), ["the cat"]).tokens == [ids]
    save_model(tmp_path / "m", cfg, weights(size, 16), tokens=gpt2_record(cfg))
    assert info(called, tmp_path / "m")["tokenizer"] == "GPT-2's"


def test_an_assumed_tokenizer_is_announced_and_a_recorded_one_is_not(tmp_path, called):
    cfg = config(300)
    save_model(tmp_path / "m", cfg, weights(300))
    words = ("generate", PROMPT, PROMPT, "--model", tmp_path / "m", "--max-new-tokens", 3)
    out, err = called(*words)
    assert err == (
        f"obscura generate: {tmp_path / 'm'} has no tokenizer; assuming GPT-2's first 299 tokens "
        "and <|endoftext|>, as in models trained by obscura\n"
    )
    assert info(called, tmp_path / "m")["tokenizer"] == (
        "GPT-2's first 299 and <|endoftext|>, assumed: the model has none of its own"
    )
    save_model(tmp_path / "m", cfg, weights(300), tokens=gpt2_record(cfg))
    assert called(*words) == (out, "")
    assert info(called, tmp_path / "m")["tokenizer"] == "GPT-2's first 299 and <|endoftext|>"
    assert info(called, tmp_path / "m")["special"] == (
        "tokens       bos_token_id=299, eos_token_id=299"
    )
    assert called(*words, "--json").err == ""


def test_the_shipped_model_has_a_record(called):
    assert info(called, "tiny")["tokenizer"] == "GPT-2's first 4095 and <|endoftext|>"
    assert load_tokenizer("tiny", load_model("tiny")[0].cfg).eos_token_id == 4095


# None.


class Witness:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def characters(tmp_path):
    """A nanoGPT checkpoint of 65 characters, with the pickle that names them."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_nanogpt(folder / "ckpt.pt", config(65), weights(65))
    saved = torch.load(folder / "ckpt.pt", weights_only=True)
    saved["config"] = {"dataset": "shakespeare_char"}
    torch.save(saved, folder / "ckpt.pt")
    (folder / "meta.pkl").write_bytes(pickle.dumps(Witness(tmp_path / "witness")))
    return folder / "ckpt.pt"


@pytest.mark.slow
def test_characters_of_nanogpt_are_read_as_ids(characters, tmp_path, called, fails):
    message = f"{characters} has 65 tokens and no tokenizer (meta.pkl is a pickle, which is not "
    message += "opened); give token ids (--ids)"
    words = ("generate", PROMPT, "--model", characters)
    assert fails(*words) == f"obscura generate: {message}"
    assert info(called, characters)["tokenizer"] == f"none: {message}"
    called("convert", characters, tmp_path / "native")
    called("export", tmp_path / "native", tmp_path / "exported", "--platforms", "cpu")
    (characters.parent / "meta.pkl").unlink()
    for source in (characters, tmp_path / "native", tmp_path / "exported"):
        line = fails("generate", PROMPT, "--model", source)
        assert f"{source} has 65 tokens and no tokenizer; give token ids (--ids)" in line
        assert info(called, source)["tokenizer"].startswith("none: ")
    model, params = load_model(characters)
    made = generate(model, params, [[1, 2, 3], [64]], 5).tokens
    text = "".join(
        f"{prompt}{''.join(f' {n}' for n in row)}\n"
        for prompt, row in zip(("1 2 3", "64"), made, strict=True)
    )
    words = ("generate", "1 2 3", "64", "--ids", "--max-new-tokens", 5, "--model")
    assert called(*words, characters) == (text, "")
    for source in (tmp_path / "native", tmp_path / "exported"):
        rows = map(json.loads, called(*words, source, "--json").out.splitlines())
        assert [row["tokens"] for row in rows] == made
    assert made[0] != generate(model, params, [[1, 2, 4]], 5).tokens[0]
    assert not (tmp_path / "witness").exists()


def test_a_pickled_vocabulary_prevents_the_assumption(tmp_path, fails):
    save_nanogpt(tmp_path / "ckpt.pt", config(300), weights(300))
    assert load_tokenizer(tmp_path / "ckpt.pt", config(300)).notice
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Witness(tmp_path / "witness")))
    assert "meta.pkl is a pickle" in fails("generate", PROMPT, "--model", tmp_path / "ckpt.pt")
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("size", [1, 65, 256, 51201, 60000])
def test_other_sizes_have_no_tokenizer(tmp_path, size):
    cfg = config(size, 8)
    save_model(tmp_path / "m", cfg, weights(size, 8))
    with pytest.raises(ValueError, match=rf"has {size} tokens and no tokenizer; give token ids"):
        load_tokenizer(tmp_path / "m", cfg)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (PROMPT, "'Hello, I am' is not a list of token ids; give numbers, such as '1 2'"),
        ("1 -2", "'1 -2' is not a list of token ids"),
        ("1.5", "'1.5' is not a list"),
        ("², 3", "is not a list"),
        (" ", "' ' is not a list"),
        ("1 400", "prompt 0: token id 400 is outside the vocabulary, 0..399"),
        ("9999999999", "prompt 0: token id 9999999999 is outside the vocabulary"),
        ("9" * 5000, "is not a list of token ids"),
    ],
)
def test_invalid_ids_are_refused_in_one_line(own, fails, prompt, message):
    assert message in fails("generate", prompt, "--ids", "--model", own)


def test_ids_are_read_and_written_as_numbers():
    tokenizer = IdTokenizer()
    for text in ("1 2 33", "1,2,33", " 1,  2\n33 "):
        assert tokenizer.encode(text) == [1, 2, 33]
    assert tokenizer.decode([1, 2, 33]) == " 1 2 33"


def test_stop_strings_are_refused_with_ids(own, fails):
    words = ("generate", "1", "--ids", "--model", own, "--stop", "x")
    assert "--stop takes text, but --ids has none" in fails(*words)


# The record.


def test_the_record_has_the_token_that_ends_a_text(own):
    cfg = load_model(own)[0].cfg
    found = read_checkpoint(own).tokens
    save_model(own.with_name("n"), cfg, weights(400), tokens=found)
    assert load_tokenizer(own.with_name("n"), cfg).eos_token_id == 0
    several = TokenRecord(None, {"eos_token_id": [7, 8]}, found.files)
    save_model(own.with_name("n"), cfg, weights(400), tokens=several)
    assert load_tokenizer(own.with_name("n"), cfg).eos_token_id == 7
    bare = TokenRecord(None, {}, found.files)
    save_model(own.with_name("n"), cfg, weights(400), tokens=bare)
    assert load_tokenizer(own.with_name("n"), cfg).eos_token_id == 0  # the token of that name
    assert load_tokenizer(own.with_name("n"), cfg).decode([0]) == END_OF_TEXT


def test_the_tokenizer_of_a_missing_model_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        load_tokenizer(tmp_path / "none", config(300))
