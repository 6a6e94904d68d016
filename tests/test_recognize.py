"""A prefix of all names is removed; a prefix of some names is refused."""

import warnings

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from obscura_jax.interop.checkpoint import load_model, read_checkpoint
from obscura_jax.interop.recognize import COURSE, FLAX, GPT2, has_token_table, recognize_names
from obscura_jax.safetensors_files import read_safetensors
from tests.support.checkpoints import save_tensors, states
from tests.support.models import (
    LOGITS,
    bits,
    course_model,
    distance,
    hf_model,
    leaves,
    nanogpt_model,
)

PREFIXES = [
    "_orig_mod.",
    "module.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model._orig_mod.module.",
    "gpt.",
]


def saved(folder, tensors):
    return save_tensors(folder / "x.safetensors", tensors)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_all_names_is_removed_and_audited(tmp_path, prefix):
    for what, (tensors, params) in states().items():
        path = saved(tmp_path, {prefix + name: x for name, x in tensors.items()})
        checkpoint = read_checkpoint(path, n_heads=3)
        assert checkpoint.dialect == what.split(",")[0]
        assert bits(leaves(checkpoint.params)) == bits(leaves(params)), what
        assert {row.source for row in checkpoint.audit} == {prefix + name for name in tensors}
        assert all(row.note.startswith(f"prefix {prefix} removed") for row in checkpoint.audit)
        bare = read_checkpoint(saved(tmp_path, tensors), n_heads=3)
        assert not any("prefix" in row.note for row in bare.audit)
        assert bits(leaves(bare.params)) == bits(leaves(params))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_prefix_of_some_names_is_refused(tmp_path, prefix):
    """Either one name lacks the prefix, or only one has it."""
    words = r"only some names have|two models"
    if prefix == "gpt.":  # no wrapper of torch's: a name with it is merely unexpected
        words += r"|(missing|unexpected) tensors: "
    for what, (tensors, _) in states().items():
        names = sorted(tensors)
        for odd in (names[0], names[len(names) // 2], names[-1]):
            lacking = {name if name == odd else prefix + name: x for name, x in tensors.items()}
            having = {prefix + name if name == odd else name: x for name, x in tensors.items()}
            with pytest.raises(ValueError, match=words) as error:
                load_model(saved(tmp_path, lacking), n_heads=3)
            assert str(tmp_path) in str(error.value), what
            assert "\n" not in str(error.value)
            with pytest.raises(ValueError, match=words):
                load_model(saved(tmp_path, having), n_heads=3)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["module.tok_emb.weight", "pos_emb.weight"],
            r"prefix 'module\.': module\.tok_emb\.weight has it, pos_emb\.weight does not",
        ),
        (
            ["tok_emb.weight", "module.pos_emb.weight"],
            r"prefix 'module\.': module\.pos_emb\.weight has it, tok_emb\.weight does not",
        ),
        (
            ["_orig_mod.module.wte.weight", "module.h.0.ln_1.bias"],
            r"prefix '_orig_mod\.module\.': _orig_mod\.module\.wte\.weight has it",
        ),
        (["transformer.wte.weight", "h.0.ln_1.bias"], r"prefix 'transformer\.'.* h\.0\.ln_1"),
        (["wte.weight", "transformer.h.0.ln_1.bias"], r"prefix 'transformer\.'.* wte\.weight does"),
        (["model.wte.weight", "ema.wte.weight"], r"two models: ema\.wte\.weight and model\.wte"),
        (["wte.weight", "transformer.wte.weight"], "are the same parameter; save only one"),
        (
            ["wte.weight", "h.0.ln_1.bias", "h.0._orig_mod.ln_1.bias"],
            "are the same parameter; save only one",
        ),
        (["tok_emb.weight", "wte.embedding"], "names of two dialects: the course .* in Flax"),
        (["a.tok_emb.weights"], "no known dialect"),
        ([], "no known dialect: .* the first are: none;"),
    ],
)
def test_names_of_several_models_or_of_none_are_refused(names, words):
    with pytest.raises(ValueError, match=words):
        recognize_names(names)


def test_the_prefix_of_a_compiled_part_is_removed():
    names = recognize_names(
        [
            "model.transformer._orig_mod.wte.weight",
            "model.transformer._orig_mod.h.0._orig_mod.ln_1.bias",
            "model.lm_head.weight",
        ]
    )
    assert (names.dialect, names.prefix) == (GPT2, "model.")
    assert list(names.plain) == ["wte.weight", "h.0.ln_1.bias", "lm_head.weight"]
    counted = recognize_names(["n_averaged", "module.n_averaged", "module.module.wte.weight"])
    assert counted.counters == ("n_averaged", "module.n_averaged")
    assert list(counted.plain) == ["n_averaged", "module.n_averaged", "wte.weight"]
    assert recognize_names(["tok_emb._orig_mod.weight"]).plain.keys() == {"tok_emb.weight"}
    assert recognize_names(["x.tok_emb.weight"]).dialect == COURSE
    assert recognize_names(["params.transformer.wte.embedding"]).dialect == FLAX
    assert not has_token_table(["wte.kernel", "tok_emb.bias", "awte.weight", 3])


@pytest.mark.parametrize("wrap", ["compile", "parallel", "averaged", "lightning"])
def test_the_prefixes_of_torchs_wrappers_are_removed(tmp_path, wrap):
    for foreign in (course_model(), nanogpt_model()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # raised by torch.compile itself
            wrapped = {
                "compile": torch.compile,
                "parallel": torch.nn.DataParallel,
                "averaged": torch.optim.swa_utils.AveragedModel,
                "lightning": lambda model: torch.nn.ModuleDict({"model": model}),
            }[wrap](foreign)
        assert not wrapped.state_dict().keys() & foreign.state_dict().keys()
        torch.save(wrapped.state_dict(), tmp_path / "x.pt")
        assert distance(tmp_path / "x.pt", foreign, n_heads=3) <= LOGITS
        audit = {
            row.source: row.note for row in read_checkpoint(tmp_path / "x.pt", n_heads=3).audit
        }
        assert audit.get("n_averaged") == ("a count: dropped" if wrap == "averaged" else None)


def tied_course():
    model = course_model()
    model.out_head.weight = model.tok_emb.weight
    return model


@pytest.mark.parametrize("foreign", [hf_model, nanogpt_model, tied_course])
@pytest.mark.parametrize("kept", ["first", "second"])
def test_a_tied_tensor_that_safetensors_stores_once_is_read(tmp_path, foreign, kept):
    """`save_model` drops one of two tied tensors and names it in the metadata."""
    foreign, path = foreign().eval(), tmp_path / "x.safetensors"
    safetensors.torch.save_model(foreign, path)
    with safetensors.safe_open(path, "numpy") as file:
        metadata, names = file.metadata(), set(file.keys())
        tensors = {name: file.get_tensor(name) for name in names}
    ((dropped, kept_name),) = metadata.items()
    if kept == "second":
        tensors[dropped] = tensors.pop(kept_name)
        metadata = {kept_name: dropped}
        safetensors.numpy.save_file(tensors, path, metadata=metadata)
    checkpoint = read_checkpoint(path, n_heads=3)
    assert checkpoint.cfg.tie_weights
    assert {row.source for row in checkpoint.audit} == names | {dropped}
    assert distance(path, foreign, n_heads=3) <= LOGITS
    # Without the metadata a file that lacks its token table is no model.
    safetensors.numpy.save_file(tensors, path, metadata={"format": "pt"})
    token_table = next(x for x in (dropped, kept_name) if "lm_head" not in x and "out" not in x)
    if token_table not in tensors:
        with pytest.raises(ValueError, match="no known dialect"):
            load_model(path, n_heads=3)
    elif "tok_emb" in token_table:
        with pytest.raises(ValueError, match=r"missing tensors: out_head\.weight"):
            load_model(path, n_heads=3)


def test_an_alias_neither_hides_a_tensor_nor_names_an_absent_one(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"a": np.arange(3, dtype="f"), "b": np.ones(3, "f")}
    metadata = {"a": "b", "c": "b", "d": "nothing", "format": "pt"}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    found = read_safetensors(path)
    assert found.keys() == {"a", "b", "c"}
    assert found["a"].tolist() == [0, 1, 2]
    assert found["c"] is found["b"]


def test_shards_with_an_alias_are_read(tmp_path):
    """The index does not name the alias, as when transformers writes it."""
    foreign = hf_model()
    foreign.config.save_pretrained(tmp_path)
    state = {name: x.numpy() for name, x in foreign.state_dict().items()}
    del state["transformer.wte.weight"]
    names = sorted(state)
    places = {name: f"model-{n % 2 + 1}.safetensors" for n, name in enumerate(names)}
    for file in set(places.values()):
        part = {name: state[name] for name in names if places[name] == file}
        metadata = {"transformer.wte.weight": "lm_head.weight"}
        safetensors.numpy.save_file(part, tmp_path / file, metadata=metadata)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(f'{{"weight_map": {str(places).replace(chr(39), chr(34))}}}')
    assert distance(tmp_path, foreign) <= LOGITS
    del places[names[3]]
    index.write_text(f'{{"weight_map": {str(places).replace(chr(39), chr(34))}}}')
    with pytest.raises(ValueError, match="do not agree about"):
        load_model(tmp_path)


def test_parameters_of_one_tensor_do_not_share_memory(tmp_path, native):
    """The config of a native folder may say that they are not tied, so each may be written to."""
    path = native / "model.safetensors"
    tensors = dict(safetensors.numpy.load_file(path))
    del tensors["out_head.weight"]
    metadata = {"out_head.weight": "tok_emb.weight"}
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    model, params = load_model(native)
    assert not model.cfg.tie_weights
    table, head = params["tok_emb"]["weight"], params["out_head"]["weight"]
    np.testing.assert_array_equal(table, head)
    assert table.unsafe_buffer_pointer() != head.unsafe_buffer_pointer()


def test_a_tied_native_model_may_have_its_head_again(tmp_path, native):
    """A head that equals the token table is dropped; another one is refused."""
    config = native / "config.json"
    text = config.read_text().replace('"tie_weights": false', '"tie_weights": true')
    config.write_text(text)
    tensors = dict(safetensors.numpy.load_file(native / "model.safetensors"))
    with pytest.raises(
        ValueError, match=r"out_head\.weight is not tok_emb\.weight, but the config says"
    ):
        load_model(native)
    tensors["out_head.weight"] = tensors["tok_emb.weight"].copy()
    safetensors.numpy.save_file(tensors, native / "model.safetensors")
    checkpoint = read_checkpoint(native)
    assert (checkpoint.dialect, checkpoint.cfg.tie_weights) == ("native", True)
    notes = {row.source: (row.target, row.note) for row in checkpoint.audit}
    assert notes["out_head.weight"] == ("-", "the token table again: checked, dropped")
    assert "out_head" not in checkpoint.params
