"""Conversions keep special tokens and tokenizer files; unknown tokens stay unset."""

import json
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.serialization import msgpack_serialize

from obscura_jax import load_model, save_model
from obscura_jax.cli.main import main
from obscura_jax.export.artifact import load_artifact
from obscura_jax.interop.checkpoint import read_checkpoint, save_hf, save_nanogpt
from obscura_jax.interop.hf_config import special_ids
from obscura_jax.interop.tokens import CARRIED, TokenRecord, gpt2_record, tokens_at
from obscura_jax.parity.gpt.prompts import stress_prompts
from tests.support.checkpoints import flax_tree
from tests.support.models import BIASED, hf_model, transformers
from tests.support.tokenizer_folders import (
    bpe,
    change_config,
    config,
    hf_folder,
    weights,
    write_json,
)

IDS = {"bos_token_id": 3, "eos_token_id": [5, 7], "pad_token_id": 9, "sep_token_id": 11}


def ids_of(source):
    return dict(read_checkpoint(source).tokens.ids)


def hf_config(folder):
    entries = json.loads((folder / "config.json").read_text())
    return {name: value for name, value in entries.items() if name.endswith("_token_id")}


@pytest.fixture
def convert(capsys):
    """Return a function that runs `obscura convert` and returns its output."""

    def run(*words):
        capsys.readouterr()
        main(["convert", *map(str, words)])
        return capsys.readouterr().out

    return run


def test_special_tokens_survive_a_chain_of_conversions(tmp_path, convert):
    source = hf_folder(tmp_path / "a", 300, **IDS)
    assert ids_of(source) == IDS
    path = source
    for kind, name in (
        ("native", "b"),
        ("nanogpt", "c.pt"),
        ("native", "d"),
        ("hf", "e"),
        ("nanogpt", "f.pt"),
        ("hf", "g"),
    ):
        convert(path, tmp_path / name, "--to", kind)
        path = tmp_path / name
        assert ids_of(path) == IDS
    assert hf_config(path) == IDS
    main(["export", str(path), str(tmp_path / "exported"), "--platforms", "cpu"])
    assert dict(tokens_at(tmp_path / "exported").ids) == IDS
    assert load_artifact(tmp_path / "exported")[0].cfg == config(300)
    convert(path, tmp_path / "h.pth", "--to", "course")  # which has no entry for them
    assert ids_of_course(tmp_path / "h.pth") == {}


def ids_of_course(path):
    return dict(read_checkpoint(path, n_heads=3).tokens.ids)


def test_special_tokens_of_a_flax_folder_are_kept(tmp_path, convert):
    theirs = hf_model()
    theirs.config.save_pretrained(tmp_path)
    tree = flax_tree(theirs)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    change_config(tmp_path, **IDS)
    convert(tmp_path, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", "--to", "hf")
    assert hf_config(tmp_path / "hf") == IDS


@pytest.mark.parametrize("size", [50257, 50300, 50304])
def test_a_padded_vocabulary_keeps_the_token_that_ends_a_text(tmp_path, size):
    """It used to become the last id, which the model never generates."""
    source = hf_folder(tmp_path / "a", size, 8, bos_token_id=50256, eos_token_id=50256)
    model, params = load_model(source)
    tokens = read_checkpoint(source).tokens
    save_model(tmp_path / "b", model.cfg, params, tokens=tokens)
    save_hf(tmp_path / "c", model.cfg, params, tokens=read_checkpoint(tmp_path / "b").tokens)
    assert hf_config(tmp_path / "c") == {"bos_token_id": 50256, "eos_token_id": 50256}


def test_unknown_special_tokens_stay_unset(tmp_path, convert):
    cfg = config(300)
    save_nanogpt(tmp_path / "a.pt", cfg, weights(300))
    assert ids_of(tmp_path / "a.pt") == {}
    convert(tmp_path / "a.pt", tmp_path / "b")
    assert not (tmp_path / "b" / "tokens.json").exists()
    convert(tmp_path / "b", tmp_path / "c", "--to", "hf")
    assert hf_config(tmp_path / "c") == {"bos_token_id": None, "eos_token_id": None}
    theirs = transformers().GPT2LMHeadModel.from_pretrained(tmp_path / "c", local_files_only=True)
    assert theirs.generation_config.eos_token_id is None
    assert ids_of(tmp_path / "c") == {}


def always(token, cfg):
    """Return the parameters of a model that generates one token for every input."""
    params = jax.tree.map(jnp.zeros_like, weights(cfg.vocab_size))
    shift = params["final_norm"]["shift"].at[0].set(1.0)
    table = params["tok_emb"]["weight"].at[token, 0].set(1.0)
    return params | {
        "final_norm": params["final_norm"] | {"shift": shift},
        "tok_emb": {"weight": table},
    }


def test_transformers_stops_at_a_converted_end_token(tmp_path, convert):
    cfg = config(300)
    save_hf(tmp_path / "a", cfg, always(7, cfg), tokens=TokenRecord(None, IDS))
    convert(tmp_path / "a", tmp_path / "b")
    convert(tmp_path / "b", tmp_path / "c.pt", "--to", "nanogpt")
    convert(tmp_path / "c.pt", tmp_path / "d", "--to", "hf")
    lengths = []
    for known in (True, False):
        if not known:
            change_config(tmp_path / "d", eos_token_id=299)  # the last id, as it used to be
        theirs = transformers().GPT2LMHeadModel.from_pretrained(
            tmp_path / "d", local_files_only=True
        )
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            out = theirs.generate(
                torch.tensor([[1, 2]]), max_new_tokens=9, do_sample=False, pad_token_id=9
            )
        assert set(out[0, 2:].tolist()) == {7}
        lengths.append(out.shape[1])
    assert lengths == [3, 11]


@pytest.mark.parametrize(
    ("entries", "generation", "ids"),
    [
        ({"vocab_size": 50257}, None, {"bos_token_id": 50256, "eos_token_id": 50256}),
        ({}, {}, {"bos_token_id": 50256, "eos_token_id": 50256}),
        ({"vocab_size": 400}, None, {}),
        ({"vocab_size": 50257, "eos_token_id": None}, None, {"bos_token_id": 50256}),
        ({"vocab_size": 400, "eos_token_id": 5}, {"eos_token_id": 6}, {"eos_token_id": 5}),
        ({"vocab_size": 400}, {"eos_token_id": [6, 7]}, {"eos_token_id": [6, 7]}),
        ({"vocab_size": 400, "eos_token_id": None}, {"eos_token_id": 6}, {"eos_token_id": 6}),
        ({"vocab_size": 400, "pad_token_id": 0}, {"use_cache": True}, {"pad_token_id": 0}),
    ],
)
def test_special_tokens_are_read_from_both_configs(entries, generation, ids):
    """Absent ids are the defaults of transformers' GPT2Config; null ones are unset."""
    assert special_ids(entries, generation) == ids
    if generation is None:
        theirs = transformers().GPT2Config(**{"vocab_size": 50257, **entries})
        found = {name: getattr(theirs, name) for name in ("bos_token_id", "eos_token_id")}
        known = {name: x for name, x in found.items() if x is not None and x < theirs.vocab_size}
        assert known == {name: x for name, x in ids.items() if name in found}


@pytest.mark.parametrize("value", ["x", 5.5, True, [5, "x"], {"a": 5}])
def test_invalid_special_tokens_are_refused(tmp_path, value):
    folder = hf_folder(tmp_path / "a", 300, eos_token_id=value)
    words = r"config\.json: the config says eos_token_id=.*; it must be a whole number"
    with pytest.raises(ValueError, match=words):
        read_checkpoint(folder)


def test_special_tokens_may_be_numbers_as_text(tmp_path):
    folder = hf_folder(tmp_path / "a", 300, eos_token_id="5", pad_token_id=[7.0, 8])
    change_config(folder, vocab_size="300")
    assert ids_of(folder) == {"eos_token_id": 5, "pad_token_id": [7, 8]}


def test_a_record_of_another_version_is_refused(tmp_path):
    save_model(tmp_path / "a", config(300), weights(300), tokens=gpt2_record(config(300)))
    for content, words in (
        (
            {"tokenizer": "gpt5"},
            "its tokenizer is 'gpt5', but this version of obscura_jax knows only 'gpt2'",
        ),
        ({"eos_token_id": "x"}, "eos_token_id='x' is not a token id"),
    ):
        write_json(tmp_path / "a" / "tokens.json", content)
        with pytest.raises(ValueError, match=rf"tokens\.json: {words}"):
            read_checkpoint(tmp_path / "a")
    (tmp_path / "a" / "tokens.json").write_text("{")
    with pytest.raises(ValueError, match=r"^[^:]*tokens\.json is not JSON"):
        read_checkpoint(tmp_path / "a")
    save_nanogpt(tmp_path / "a.pt", config(300), weights(300))
    saved = torch.load(tmp_path / "a.pt", weights_only=True)
    saved["config"]["obscura_jax"]["tokens"] = [1]
    torch.save(saved, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="the record of its tokens is damaged"):
        read_checkpoint(tmp_path / "a.pt")


def test_an_older_version_can_read_the_config_of_a_model_with_a_record(tmp_path):
    """It refuses unknown entries, so `config.json` has none."""
    cfg = config(300)
    save_model(tmp_path / "a", cfg, weights(300), tokens=TokenRecord("gpt2", IDS))
    entries = json.loads((tmp_path / "a" / "config.json").read_text())
    assert entries == {"format": "obscura_jax", **cfg.to_dict()}
    assert json.loads((tmp_path / "a" / "tokens.json").read_text()) == {"tokenizer": "gpt2", **IDS}


def test_convert_lists_what_is_kept_and_what_is_left_out(tmp_path, convert):
    source = hf_folder(tmp_path / "a", 300, **IDS, summary_type="cls_index", use_cache=True)
    bpe(300).save(str(source / "tokenizer.json"))
    write_json(source / "generation_config.json", {"eos_token_id": [5, 7]})
    (source / "chat_template.jinja").write_text("{{ x }}")
    (source / "README.md").write_text("not used by a model")
    entries = [f"{name}={value}" for name, value in IDS.items()]
    files = ["tokenizer.json", "generation_config.json", "chat_template.jinja"]
    unused = ["summary_type", "use_cache"]
    for kind, name, kept, left in (
        ("native", "b", entries + files, unused),
        ("hf", "c", entries + files, unused),
        ("nanogpt", "d.pt", entries, files + unused),
        ("course", "e.pth", [], entries + files + unused),
    ):
        lines = convert(source, tmp_path / name, "--to", kind).splitlines()
        said = dict(line.split(": ", 1) for line in lines if line.startswith(("kept", "left")))
        assert said.get("left out", "") == ", ".join(left)
        assert said.get("kept", "") == ", ".join(kept)
        if kind in ("native", "hf"):
            there = {path.name for path in (tmp_path / name).iterdir()}
            assert there & set(CARRIED) == set(files)
            for file in files:
                assert (tmp_path / name / file).read_bytes() == (source / file).read_bytes()
    lines = convert(tmp_path / "b", tmp_path / "f", "--to", "hf").splitlines()
    assert not any(line.startswith("left") for line in lines)


def test_a_drop_rate_that_is_not_carried_is_listed(tmp_path):
    source = hf_folder(tmp_path / "a", 300)
    assert read_checkpoint(source).tokens.unused == ()
    change_config(source, attn_pdrop=0.3)
    assert read_checkpoint(source).tokens.unused == ("attn_pdrop",)


def test_a_parity_prompt_has_the_token_that_ends_a_text():
    known = stress_prompts(BIASED, end_of_text=4)["<|endoftext|> inside"]
    assert known[0, known.shape[1] // 2] == 4
    for unknown in (None, 17, -1):
        found = stress_prompts(BIASED, end_of_text=unknown)["<|endoftext|> inside"]
        assert found[0, found.shape[1] // 2] == 16
    for name, ids in stress_prompts(BIASED, end_of_text=4).items():
        same = np.array_equal(ids, stress_prompts(BIASED)[name])
        assert same == (name != "<|endoftext|> inside")


def test_the_record_of_a_trained_model_ends_a_text_with_its_last_token():
    for size, last in ((300, 299), (50257, 50256), (50304, 50256)):
        record = gpt2_record(replace(config(300), vocab_size=size))
        assert record.to_dict() == {
            "tokenizer": "gpt2",
            "bos_token_id": last,
            "eos_token_id": last,
        }
        assert record.eos_token_id == last
    assert TokenRecord().eos_token_id is None
    assert TokenRecord(None, {"eos_token_id": []}).eos_token_id is None
