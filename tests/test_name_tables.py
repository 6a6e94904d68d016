"""Every dialect of GPT-2 is read and written, and its own library loads what is written."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict

from obscura_jax import generate
from obscura_jax.config import PRESETS
from obscura_jax.interop import name_tables
from obscura_jax.interop.checkpoint import (
    load_model,
    read_checkpoint,
    save_course,
    save_hf,
    save_model,
    save_nanogpt,
)
from obscura_jax.interop.course_state import parameter_shapes
from tests.support.checkpoints import flax_tree, save_tensors, state_of
from tests.support.models import (
    BIASED,
    CFG,
    IDS,
    LOGITS,
    NANOGPT_ARGS,
    TIED,
    distance,
    hf_model,
    leaves,
    model_of,
    nanogpt_model,
    same_bits,
    transformers,
)
from tests.support.nanogpt import GPT

PROMPTS = IDS[:, :4].tolist()
TABLES = (name_tables.HUGGING_FACE, name_tables.NANOGPT, name_tables.FLAX, name_tables.COURSE)


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [TIED, BIASED, CFG, replace(CFG, tie_weights=True, ln_eps=1e-6)])
def test_transformers_loads_a_folder_that_we_write(tmp_path, cfg):
    params = model_of(cfg)
    save_hf(tmp_path, cfg, params)
    foreign, report = transformers().GPT2LMHeadModel.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
    assert distance(tmp_path, foreign.eval()) <= LOGITS
    model, found = load_model(tmp_path)
    assert model.cfg == cfg
    assert same_bits(found, params)
    tokens = generate(model, found, PROMPTS, 7).tokens
    ids = torch.tensor(PROMPTS)
    settings = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = foreign.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert out[:, 4:].tolist() == tokens
    assert generate(model, model_of(cfg, seed=1), PROMPTS, 7).tokens != tokens


@pytest.mark.parametrize("size", ["10GB", "4KB"])
@pytest.mark.parametrize("cfg", [TIED, BIASED])
def test_a_folder_that_transformers_writes_is_read(tmp_path, cfg, size):
    foreign = hf_model(cfg)
    foreign.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "4KB")
    assert distance(tmp_path, foreign) <= LOGITS
    assert distance(tmp_path, hf_model(cfg, seed=1)) > 1
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.dialect == "hf"
    row = next(row for row in checkpoint.audit if "h.1.attn.c_attn.weight" in row.source)
    assert row.note == "transposed, split in three"
    assert row.target.split(", ")[1] == "trf_blocks.1.att.W_key.weight"
    assert (row.shape, row.dtype) == ((12, 36), "float32")


def test_a_torch_file_without_a_head_and_with_masks_is_read(tmp_path):
    """`GPT2Model` has no prefix and no head; files of before 2023 have the masks."""
    foreign = hf_model()
    body = {f"{k}": v for k, v in foreign.transformer.state_dict().items()}
    size = TIED.context_length
    for n in range(TIED.n_layers):
        body[f"h.{n}.attn.bias"] = torch.tril(torch.ones(1, 1, size, size, dtype=torch.uint8))
        body[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(body, tmp_path / "pytorch_model.bin")
    foreign.config.save_pretrained(tmp_path)
    assert distance(tmp_path, foreign) <= LOGITS
    notes = {row.source: row.note for row in read_checkpoint(tmp_path).audit}
    assert notes["h.1.attn.masked_bias"] == "causal mask: checked, dropped"
    body["h.1.attn.bias"] = torch.ones_like(body["h.1.attn.bias"])
    torch.save(body, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"h\.1\.attn\.bias is not the causal mask"):
        load_model(tmp_path)


def test_torch_files_in_shards_are_read(tmp_path):
    foreign = hf_model()
    state = foreign.state_dict()
    names = sorted(state)
    places = {name: f"pytorch_model-{i % 2 + 1}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({n: state[n].clone() for n in names if places[n] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    foreign.config.save_pretrained(tmp_path)
    assert distance(tmp_path, foreign) <= LOGITS
    wrong = {**places, "lm_head.weight": places[names[1]]}
    assert wrong != places
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(ValueError, match=r"do not agree about lm_head\.weight"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    (tmp_path / "pytorch_model-2.bin").unlink()
    with pytest.raises(ValueError, match=r"the shard pytorch_model-2\.bin is missing"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_half_precision_is_widened_exactly(tmp_path, dtype, kind):
    foreign = hf_model().to(getattr(torch, dtype))
    foreign.config.save_pretrained(tmp_path)
    if kind == "bin":
        torch.save(foreign.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        foreign.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert {row.dtype for row in checkpoint.audit} == {dtype}
    expected = foreign.transformer.h[1].mlp.c_fc.weight.detach().float().T.numpy()
    found = leaves(checkpoint.params)["trf_blocks.1.ff.layers.0.weight"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_nanogpt_checkpoint_is_read(tmp_path, bias, prefix):
    args = {**NANOGPT_ARGS, "bias": bias, "dropout": 0.0}
    foreign = nanogpt_model(bias)
    state = {prefix + k: v for k, v in foreign.state_dict().items()}
    content = {"model": state, "model_args": args, "optimizer": {"state": {}}, "iter_num": 3}
    torch.save(content, tmp_path / "ckpt.pt")
    assert distance(tmp_path / "ckpt.pt", foreign) <= LOGITS
    checkpoint = read_checkpoint(tmp_path / "ckpt.pt")
    assert (checkpoint.dialect, checkpoint.cfg.qkv_bias, checkpoint.cfg.drop_rate) == (
        "nanogpt", bias, 0.0
    )  # fmt: skip
    turned = {k: v.T if v.shape == (12, 12) else v for k, v in state.items()}
    torch.save({**content, "model": turned}, tmp_path / "wrong.pt")
    assert distance(tmp_path / "wrong.pt", foreign) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [TIED, replace(CFG, tie_weights=True)])
def test_nanogpt_loads_a_checkpoint_that_we_write(tmp_path, cfg):
    params = model_of(cfg)
    save_nanogpt(tmp_path / "ckpt.pt", cfg, params)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    foreign = GPT(content["model_args"]).eval()
    foreign.load_state_dict(content["model"], strict=True)
    assert distance(tmp_path / "ckpt.pt", foreign) <= LOGITS
    model, found = load_model(tmp_path / "ckpt.pt")
    assert model.cfg == cfg
    assert same_bits(found, params)
    greedy, ids = generate(model, found, PROMPTS, 7).tokens, torch.tensor(PROMPTS)
    with torch.no_grad():
        for _ in range(7):
            ids = torch.cat((ids, foreign(ids)[:, -1].argmax(-1, keepdim=True)), 1)
    assert ids[:, 4:].tolist() == greedy


def test_an_untied_head_is_not_written_for_nanogpt(tmp_path):
    with pytest.raises(
        ValueError, match="nanoGPT's output head is its token table, but this model"
    ):
        save_nanogpt(tmp_path / "ckpt.pt", BIASED, model_of(BIASED))
    params = model_of(BIASED)
    params["out_head"] = {"weight": params["tok_emb"]["weight"]}
    save_nanogpt(tmp_path / "ckpt.pt", BIASED, params)
    model, back = load_model(tmp_path / "ckpt.pt")
    assert model.cfg == BIASED
    assert same_bits(back, params)
    with pytest.raises(ValueError, match="nanoGPT's layer norm has eps 1e-05"):
        save_nanogpt(tmp_path / "x.pt", replace(TIED, ln_eps=1e-6), model_of(TIED))
    with pytest.raises(ValueError, match=r"must end in \.pt or \.pth"):
        save_nanogpt(tmp_path / "x.safetensors", TIED, model_of(TIED))


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.safetensors"])
def test_a_flax_file_with_an_untied_head_is_read(tmp_path, name):
    foreign = hf_model(BIASED)
    foreign.config.save_pretrained(tmp_path)
    tree = flax_tree(foreign)
    head, table = tree["lm_head"]["kernel"], tree["transformer"]["wte"]["embedding"]

    def write(tree):
        if name == "flax_model.msgpack":
            (tmp_path / name).write_bytes(msgpack_serialize(tree))
        else:
            save_tensors(tmp_path / name, flatten_dict(tree, sep="."))

    write(tree)
    assert distance(tmp_path, foreign) <= LOGITS
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.dialect, checkpoint.cfg.tie_weights) == ("flax", False)
    row = next(row for row in checkpoint.audit if row.source == "lm_head.kernel")
    assert (row.target, row.shape, row.note) == ("out_head.weight", table.T.shape, "transposed")
    write(tree | {"lm_head": {"kernel": head[::-1].copy()}})
    assert distance(tmp_path, foreign) > 0.1
    write(tree | {"lm_head": {"kernel": np.ascontiguousarray(head.T)}})
    with pytest.raises(
        ValueError, match=r"lm_head\.kernel has shape \(\d+, 12\), but the model needs \(12,"
    ):
        load_model(tmp_path)
    write({k: v for k, v in tree.items() if k != "lm_head"})
    with pytest.raises(
        ValueError, match=r"missing tensors: lm_head\.kernel; only a model whose config"
    ):
        load_model(tmp_path)
    hf_model().config.save_pretrained(tmp_path)
    write(tree | {"lm_head": {"kernel": np.ascontiguousarray(table.T)}})
    assert read_checkpoint(tmp_path).cfg.tie_weights
    write(tree)
    with pytest.raises(
        ValueError, match=r"lm_head\.kernel is not transformer\.wte\.embedding, but"
    ):
        load_model(tmp_path)


def test_a_flax_file_is_read(tmp_path):
    foreign = hf_model()
    foreign.config.save_pretrained(tmp_path)
    tree = flax_tree(foreign)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert distance(tmp_path, foreign) <= LOGITS
    assert read_checkpoint(tmp_path).dialect == "flax"
    kernel = tree["transformer"]["h"]["0"]["attn"]["c_proj"]["kernel"]
    tree["transformer"]["h"]["0"]["attn"]["c_proj"]["kernel"] = kernel.T.copy()
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert distance(tmp_path, foreign) > 0.1


def test_a_chain_of_conversions_keeps_every_bit(tmp_path):
    """The chain goes through every dialect that can hold the model."""
    params = model_of(TIED)
    steps = (
        (save_hf, "hf"),
        (save_nanogpt, "a.pt"),
        (save_model, "native"),
        (save_hf, "hf2"),
    )
    cfg, found = TIED, params
    for save, name in steps:
        save(tmp_path / name, cfg, found)
        model, found = load_model(tmp_path / name)
        cfg = model.cfg
        assert cfg == TIED, name
        assert same_bits(found, params), name
    save_course(tmp_path / "c.safetensors", BIASED, model_of(BIASED))
    model, found = load_model(tmp_path / "c.safetensors", n_heads=3)
    assert (model.cfg, same_bits(found, model_of(BIASED))) == (BIASED, True)
    assert not same_bits(found, model_of(BIASED, seed=1))


@pytest.mark.parametrize("preset", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "124M"])
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_every_parameter_is_in_one_row(preset, table):
    """And every target of a row is a parameter, of a model with all biases and a head."""
    cfg = replace(PRESETS[preset], qkv_bias=True, tie_weights=False)
    rows = table.numbered(cfg.n_layers)
    targets = [name for row in rows for name in row.targets]
    assert sorted(targets) == sorted(parameter_shapes(cfg))
    names = [row.foreign for row in rows]
    assert len(set(names)) == len(names)
    assert not set(names) & {mask.format(0) for mask in table.masks}


def test_a_row_with_a_star_is_three_parameters():
    row = name_tables.HUGGING_FACE.numbered(2)[7]
    assert (row.native, row.foreign) == ("trf_blocks.1.att.W_*.weight", "h.1.attn.c_attn.weight")
    assert row.targets == tuple(f"trf_blocks.1.att.W_{x}.weight" for x in ("query", "key", "value"))
    assert name_tables.COURSE.numbered(1)[0].targets == ("tok_emb.weight",)


def test_biases_that_were_trained_elsewhere_are_kept(tmp_path):
    """The record that the model has none is copied with the config, but they are not 0."""
    save_hf(tmp_path, CFG, model_of(CFG))
    foreign = transformers().GPT2LMHeadModel.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        foreign.transformer.h[1].attn.c_attn.bias += 0.5
    foreign.save_pretrained(tmp_path / "tuned")
    assert load_model(tmp_path / "tuned")[0].cfg == BIASED
    assert distance(tmp_path / "tuned", foreign) <= LOGITS


def test_the_hub_is_asked_for_the_files_of_a_model(tmp_path, monkeypatch):
    import huggingface_hub

    save_hf(tmp_path, TIED, model_of(TIED))
    requests = []

    def download(repo, allow_patterns):
        requests.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("gpt2-medium")[0].cfg == TIED
    of_tokenizer = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    files = ["config.json", "model.safetensors", *of_tokenizer]
    assert requests == [("openai-community/gpt2-medium", files)]

    def offline(repo, allow_patterns):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"gpt2 cannot be fetched .*\(no network\); fetch"):
        load_model("gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"fetching gpt2 needs huggingface_hub: run pip .*\[hub\]"):
        load_model("gpt2")


def test_a_file_without_a_config_needs_only_the_number_of_heads(tmp_path):
    save_tensors(tmp_path / "weights.safetensors", state_of())
    with pytest.raises(ValueError, match="give n_heads"):
        load_model(tmp_path / "weights.safetensors")
    model, params = load_model(tmp_path / "weights.safetensors", n_heads=3)
    assert model.cfg == replace(TIED, drop_rate=model.cfg.drop_rate)
    assert same_bits(params, model_of(TIED))
