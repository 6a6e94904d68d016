"""Tokenizers in folders have the ids of transformers; GPT-2's needs no extra."""

import json
import sys

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from obscura_jax.interop.tokenizer_files import FolderTokenizer, read_tokenizer
from obscura_jax.text.any_tokenizer import token_ids
from obscura_jax.text.tokenizers import END_OF_TEXT, gpt2_tokenizer
from tests.support.tokenizer_folders import (
    TEXTS,
    auto_tokenizer,
    bpe,
    gpt2_definition,
    gpt2_files,
    transformers,
    write_json,
)

SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"


@pytest.fixture(scope="module")
def trained():
    return bpe(400)


@pytest.fixture
def folder(tmp_path):
    """Return a folder that transformers reads as a GPT-2."""
    write_json(tmp_path / "config.json", {"model_type": "gpt2", "vocab_size": 400})
    return tmp_path


def agrees_with_transformers(folder):
    """Assert equal ids and text; return the ids."""
    ours, theirs = read_tokenizer(folder)[0], auto_tokenizer(folder)
    ids = [theirs.encode(text) for text in TEXTS]
    assert [token_ids(ours, text) for text in TEXTS] == ids
    assert [ours.decode(row) for row in ids] == [theirs.decode(row) for row in ids]
    return ids


@pytest.mark.parametrize(
    "settings",
    [
        None,
        {"tokenizer_class": "GPT2TokenizerFast", "add_prefix_space": True},
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
        {"add_prefix_space": True},
        {"add_bos_token": True, "bos_token": END_OF_TEXT},
    ],
)
def test_a_definition_gives_the_ids_of_transformers(folder, trained, settings):
    trained.save(str(folder / "tokenizer.json"))
    if settings is not None:
        write_json(folder / SETTINGS, settings)
    ids = agrees_with_transformers(folder)
    assert read_tokenizer(folder)[1] == "tokenizer.json"
    first = gpt2_tokenizer(400).encode(TEXTS[0])
    assert ids[0] != first  # GPT-2's own tokens would be noise


@pytest.mark.parametrize(
    ("settings", "special", "added"),
    [
        (None, None, None),
        ({"add_prefix_space": True}, None, None),
        ({"add_bos_token": True}, None, None),
        ({"add_bos_token": True, "bos_token": "Ġthe"}, None, None),
        (None, {"pad_token": "[PAD]", "eos_token": {"content": END_OF_TEXT}}, None),
        (None, {"pad_token": "[PAD]"}, {"[PAD]": 400}),
        ({"additional_special_tokens": ["CAFÉ"], "pad_token": "[PAD]"}, None, None),
        (
            {
                "tokenizer_class": "GPT2Tokenizer",
                "pad_token": "[PAD]",
                "added_tokens_decoder": {
                    "401": {"content": "[PAD]", "special": True, "normalized": False},
                    "400": {"content": "CAFÉ", "special": True, "normalized": False},
                },
            },
            None,
            None,
        ),
    ],
)
def test_a_vocabulary_gives_the_ids_of_transformers(folder, trained, settings, special, added):
    trained.model.save(str(folder))
    for name, content in ((SETTINGS, settings), (SPECIAL, special), (ADDED, added)):
        if content is not None:
            write_json(folder / name, content)
    ids = agrees_with_transformers(folder)
    assert read_tokenizer(folder)[1] == "vocab.json"
    if settings or added:
        for name in (SETTINGS, SPECIAL, ADDED):
            (folder / name).unlink(missing_ok=True)
        assert [read_tokenizer(folder)[0].encode(text) for text in TEXTS] != ids


def test_settings_do_not_change_a_definition(folder):
    """The normalizer, template and unknown token are used; limits set for training are not."""
    tokenizer = bpe(400, special=(END_OF_TEXT, "[BOS]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.post_processor = processors.TemplateProcessing("[BOS] $A", None, [("[BOS]", 1)])
    fast = transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(folder)
    ids = agrees_with_transformers(folder)
    assert {row[0] for row in ids} == {1}
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=90)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert [read_tokenizer(folder)[0].encode(text) for text in TEXTS] == ids


def test_tokenizers_that_are_not_byte_level_are_read(folder):
    letters = "abcdehlo,"
    pieces = [("<unk>", 0.0), *((x, -2.0) for x in letters), *(("▁" + x, -1.0) for x in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    transformers().PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    agrees_with_transformers(folder)
    ours = read_tokenizer(folder)[0]
    assert ours.decode(ours.encode("a hello ad")) == "a hello ad"


@pytest.mark.parametrize("count", [257, 300, 50257])
def test_gpt2s_own_tokens_need_no_extra(folder, monkeypatch, count):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    definition = gpt2_definition(count)
    vocabulary, merges = gpt2_files(count)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    expected = gpt2_tokenizer(count)
    for end in ("\n", "\r\n"):
        write_json(folder / "vocab.json", vocabulary)
        (folder / "merges.txt").write_text(end.join(lines), encoding="utf-8", newline="")
        assert read_tokenizer(folder) == (expected, "vocab.json")
    for written in (definition, as_on_the_hub(definition)):
        write_json(folder / "tokenizer.json", written)
        assert read_tokenizer(folder) == (expected, "tokenizer.json")


def as_on_the_hub(definition):
    """Return the definition as older versions of the library wrote it, like GPT-2's own file."""
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    model = {name: value for name, value in definition["model"].items() if name != "type"}
    model |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    before = level | {"add_prefix_space": False}
    return definition | {
        "pre_tokenizer": before,
        "post_processor": level,
        "decoder": level,
        "model": model,
    }


def test_gpt2s_own_tokens_have_the_ids_of_transformers(folder):
    write_json(folder / "tokenizer.json", gpt2_definition(500))
    agrees_with_transformers(folder)
    assert read_tokenizer(folder)[0] is gpt2_tokenizer(500)


def swapped(definition):
    merges = definition["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]


def cut_elsewhere(definition):
    """The merges spell the same tokens in the same order."""
    merges = definition["model"]["merges"]
    at, (a, b) = next((i, pair) for i, pair in enumerate(merges) if pair == ["Ġt", "he"])
    merges[at] = ["Ġth", "e"]
    assert "".join(merges[at]) == a + b


def renumbered(definition):
    vocabulary = definition["model"]["vocab"]
    vocabulary["Ġ"], vocabulary["!"] = vocabulary["!"], vocabulary["Ġ"]


@pytest.mark.parametrize(
    "change",
    [
        swapped,
        cut_elsewhere,
        renumbered,
        lambda d: d.update(normalizer={"type": "NFC"}),
        lambda d: d["pre_tokenizer"].update(add_prefix_space=True),
        lambda d: d["pre_tokenizer"].update(use_regex=False),
        lambda d: d["model"].update(dropout=0.5),
        lambda d: d["added_tokens"][0].update(lstrip=True),
        lambda d: d.update(decoder=None),
        lambda d: d.update(pre_tokenizer=None),
    ],
)
def test_the_library_reads_tokenizers_that_differ_from_gpt2s(folder, change):
    definition = gpt2_definition(300)
    write_json(folder / "tokenizer.json", definition)
    assert read_tokenizer(folder)[0] is gpt2_tokenizer(300)
    change(definition)
    write_json(folder / "tokenizer.json", definition)
    assert isinstance(read_tokenizer(folder)[0], FolderTokenizer)


def test_a_missing_extra_is_named(folder, trained, monkeypatch):
    trained.save(str(folder / "tokenizer.json"))
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    needed = r"reading .*tokenizer\.json needs tokenizers.*pip install .*\[tokenizers\]"
    with pytest.raises(ValueError, match=needed):
        read_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    trained.model.save(str(folder))
    with pytest.raises(ValueError, match=needed.replace("tokenizer", "vocab", 1)):
        read_tokenizer(folder)


def test_a_folder_without_a_tokenizer_has_none(folder):
    assert read_tokenizer(folder) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": ""}, r"tokenizer\.json is not JSON"),
        ({"tokenizer.json": "{}"}, r"tokenizer\.json is damaged or not a tokenizer"),
        ({"tokenizer.json": '{"model": 3}'}, r"tokenizer\.json is damaged or not a tokenizer"),
        ({"vocab.json": "{}"}, r"has vocab\.json but no merges\.txt"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "a\n"},
            r"merges\.txt is damaged: 'a' is not two",
        ),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, r"are not a tokenizer"),
        ({"vocab.json": '{"a": "x"}', "merges.txt": ""}, r"are (not a tokenizer|damaged)"),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", ADDED: '{"[PAD]": 7}'},
            r"gives \[PAD\] the id 7, but its vocabulary gives it 1",
        ),
        (
            {
                "vocab.json": '{"a": 0}',
                "merges.txt": "",
                SETTINGS: '{"added_tokens_decoder": {"x": 3}}',
            },
            r"tokenizer_config\.json is damaged \(invalid literal",
        ),
        (
            {"vocab.json": '{"a": 0}', "merges.txt": "", SETTINGS: '{"added_tokens_decoder": 3}'},
            r"the tokenizer files of .* are damaged",
        ),
        (
            {"vocab.txt": "[UNK]\n"},
            r"has its tokenizer in vocab\.txt, which obscura_jax cannot read",
        ),
        (
            {"spiece.model": "x"},
            r"spiece\.model, which obscura_jax cannot read; write tokenizer\.json",
        ),
    ],
)
def test_damaged_and_unsupported_files_are_named(folder, files, message):
    for name, content in files.items():
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_tokenizer(folder)
    assert str(folder) in str(caught.value)


def test_text_with_unknown_ids_can_be_decoded(folder, trained):
    trained.save(str(folder / "tokenizer.json"))
    ours = read_tokenizer(folder)[0]
    assert json.loads(trained.to_str())["model"]["vocab"][ours.id_to_token(300)] == 300
    assert ours.id_to_token(400) is None
    assert ours.decode([40, 400, 41]) == ours.decode([40, 41])
