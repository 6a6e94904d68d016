"""The dialects of GPT-2: read, written, and loaded by those whose dialect it is."""

import json
import sys
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.serialization import msgpack_serialize
from flax.traverse_util import flatten_dict, unflatten_dict

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
from obscura_jax.interop.course_state import from_course, parameter_shapes
from tests.support.checkpoints import (
    BIASED,
    CFG,
    IDS,
    LOGITS,
    bits,
    course_model,
    leaves,
    logits_of,
)
from tests.support.nanogpt import GPT

TIED = replace(BIASED, tie_weights=True)
PROMPTS = IDS[:, :4].tolist()


@cache
def transformers():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own making
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    return transformers


def model_of(cfg, seed=0):
    state = course_model(replace(cfg, tie_weights=False), seed).state_dict()
    if cfg.tie_weights:
        del state["out_head.weight"]
    return from_course({name: x.numpy() for name, x in state.items()}, cfg)[0]


def hf_model(cfg=TIED, seed=0, **changes):
    config = transformers().GPT2Config(
        vocab_size=cfg.vocab_size,
        n_positions=cfg.context_length,
        n_embd=cfg.emb_dim,
        n_head=cfg.n_heads,
        n_layer=cfg.n_layers,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=cfg.tie_weights,
        **changes,
    )
    torch.manual_seed(seed)
    model = transformers().GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def hf_logits(model):
    with torch.no_grad():
        return model(torch.tensor(IDS)).logits.numpy()


def distance(source, theirs, **kwargs):
    return np.abs(logits_of(*load_model(source, **kwargs)) - theirs).max()


def same_bits(a, b):
    return bits(leaves(a)) == bits(leaves(b))


@pytest.mark.parametrize("cfg", [TIED, BIASED, CFG, replace(CFG, tie_weights=True, ln_eps=1e-6)])
def test_transformers_loads_what_we_write(tmp_path, cfg):
    params = model_of(cfg)
    save_hf(tmp_path, cfg, params)
    theirs, report = transformers().GPT2LMHeadModel.from_pretrained(
        tmp_path, output_loading_info=True, local_files_only=True
    )
    assert not any(report.values()), report
    assert distance(tmp_path, hf_logits(theirs.eval())) <= LOGITS
    model, ours = load_model(tmp_path)
    assert model.cfg == cfg
    assert same_bits(ours, params)
    tokens = generate(model, ours, PROMPTS, 7).tokens
    ids = torch.tensor(PROMPTS)
    settings = {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = theirs.generate(ids, attention_mask=torch.ones_like(ids), **settings)
    assert out[:, 4:].tolist() == tokens
    assert generate(model, model_of(cfg, seed=1), PROMPTS, 7).tokens != tokens


@pytest.mark.parametrize("size", ["10GB", "4KB"])
@pytest.mark.parametrize("cfg", [TIED, BIASED])
def test_what_transformers_writes_is_read(tmp_path, cfg, size):
    theirs = hf_model(cfg)
    theirs.save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (size == "4KB")
    assert distance(tmp_path, hf_logits(theirs)) <= LOGITS
    assert distance(tmp_path, hf_logits(hf_model(cfg, seed=1))) > 1
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.dialect == "hf"
    row = next(row for row in checkpoint.audit if "h.1.attn.c_attn.weight" in row.source)
    assert row.note == "transposed, split in three"
    assert row.target.split(", ")[1] == "trf_blocks.1.att.W_key.weight"
    assert (row.shape, row.dtype) == ((12, 36), "float32")


def test_without_a_head_with_masks_and_as_torch_files(tmp_path):
    """`GPT2Model` has no prefix and no head; files of before 2023 have the masks."""
    theirs = hf_model()
    body = {f"{k}": v for k, v in theirs.transformer.state_dict().items()}
    for n in range(2):
        body[f"h.{n}.attn.bias"] = torch.tril(torch.ones(1, 1, 11, 11, dtype=torch.uint8))
        body[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(body, tmp_path / "pytorch_model.bin")
    theirs.config.save_pretrained(tmp_path)
    assert distance(tmp_path, hf_logits(theirs)) <= LOGITS
    notes = {row.source: row.note for row in read_checkpoint(tmp_path).audit}
    assert notes["h.1.attn.masked_bias"] == "causal mask: checked, dropped"
    body["h.1.attn.bias"] = torch.ones_like(body["h.1.attn.bias"])
    torch.save(body, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"h\.1\.attn\.bias is not the causal mask"):
        load_model(tmp_path)


def test_shards_of_torch_files(tmp_path):
    theirs = hf_model()
    state = theirs.state_dict()
    names = sorted(state)
    places = {name: f"pytorch_model-{i % 2 + 1}.bin" for i, name in enumerate(names)}
    for file in set(places.values()):
        torch.save({n: state[n].clone() for n in names if places[n] == file}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    theirs.config.save_pretrained(tmp_path)
    assert distance(tmp_path, hf_logits(theirs)) <= LOGITS
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
def test_short_types_are_widened_exactly(tmp_path, dtype, kind):
    theirs = hf_model().to(getattr(torch, dtype))
    theirs.config.save_pretrained(tmp_path)
    if kind == "bin":
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    else:
        theirs.save_pretrained(tmp_path)
    checkpoint = read_checkpoint(tmp_path)
    assert {row.dtype for row in checkpoint.audit} == {dtype}
    expected = theirs.transformer.h[1].mlp.c_fc.weight.detach().float().T.numpy()
    found = leaves(checkpoint.params)["trf_blocks.1.ff.layers.0.weight"]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpt(tmp_path, bias, prefix):
    args = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 11, "vocab_size": 17}
    args |= {"bias": bias, "dropout": 0.0}
    torch.manual_seed(0)
    theirs = GPT(args).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        expected = theirs(torch.tensor(IDS)).numpy()
    state = {prefix + k: v for k, v in theirs.state_dict().items()}
    content = {"model": state, "model_args": args, "optimizer": {"state": {}}, "iter_num": 3}
    torch.save(content, tmp_path / "ckpt.pt")
    assert distance(tmp_path / "ckpt.pt", expected) <= LOGITS
    checkpoint = read_checkpoint(tmp_path / "ckpt.pt")
    assert (checkpoint.dialect, checkpoint.cfg.qkv_bias, checkpoint.cfg.drop_rate) == (
        "nanogpt", bias, 0.0
    )  # fmt: skip
    turned = {k: v.T if v.shape == (12, 12) else v for k, v in state.items()}
    torch.save({**content, "model": turned}, tmp_path / "wrong.pt")
    assert distance(tmp_path / "wrong.pt", expected) > 0.1


@pytest.mark.parametrize("cfg", [TIED, replace(CFG, tie_weights=True)])
def test_nanogpt_loads_what_we_write(tmp_path, cfg):
    params = model_of(cfg)
    save_nanogpt(tmp_path / "ckpt.pt", cfg, params)
    content = torch.load(tmp_path / "ckpt.pt", weights_only=True)
    theirs = GPT(content["model_args"]).eval()
    theirs.load_state_dict(content["model"], strict=True)
    with torch.no_grad():
        assert distance(tmp_path / "ckpt.pt", theirs(torch.tensor(IDS)).numpy()) <= LOGITS
    model, ours = load_model(tmp_path / "ckpt.pt")
    assert model.cfg == cfg
    assert same_bits(ours, params)
    greedy, ids = generate(model, ours, PROMPTS, 7).tokens, torch.tensor(PROMPTS)
    with torch.no_grad():
        for _ in range(7):
            ids = torch.cat((ids, theirs(ids)[:, -1].argmax(-1, keepdim=True)), 1)
    assert ids[:, 4:].tolist() == greedy


def test_a_head_of_its_own_is_not_for_nanogpt(tmp_path):
    with pytest.raises(ValueError, match="nanoGPT's head is its token table"):
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


def flax_tree(theirs):
    """The parameters of transformers' Flax GPT-2.

    Its own layers stored their kernels as (out, in); an untied head was Flax's, with (in, out).
    """
    flat = {}
    for name, tensor in theirs.transformer.state_dict().items():
        *path, last = name.split(".")
        if "ln_" in name:
            last = {"weight": "scale", "bias": "bias"}[last]
        elif last == "weight":
            last = "embedding" if path[0] in ("wte", "wpe") else "kernel"
        turned = tensor.T if last == "kernel" else tensor
        flat[("transformer", *path, last)] = turned.numpy()
    if not theirs.config.tie_word_embeddings:
        head = theirs.lm_head.weight.detach().numpy()
        flat[("lm_head", "kernel")] = np.ascontiguousarray(head.T)
    return unflatten_dict(flat)


@pytest.mark.parametrize("name", ["flax_model.msgpack", "model.safetensors"])
def test_flax_with_a_head_of_its_own(tmp_path, name):
    theirs = hf_model(BIASED)
    theirs.config.save_pretrained(tmp_path)
    tree = flax_tree(theirs)

    def write(tree):
        if name == "flax_model.msgpack":
            (tmp_path / name).write_bytes(msgpack_serialize(tree))
        else:
            flat = {k: np.ascontiguousarray(v) for k, v in flatten_dict(tree, sep=".").items()}
            safetensors.numpy.save_file(flat, tmp_path / name)

    write(tree)
    assert distance(tmp_path, hf_logits(theirs)) <= LOGITS
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.dialect, checkpoint.cfg.tie_weights) == ("flax", False)
    row = next(row for row in checkpoint.audit if row.source == "lm_head.kernel")
    assert (row.target, row.shape, row.note) == ("out_head.weight", (12, 17), "transposed")
    head, table = tree["lm_head"]["kernel"], tree["transformer"]["wte"]["embedding"]
    write(tree | {"lm_head": {"kernel": head[::-1].copy()}})
    assert distance(tmp_path, hf_logits(theirs)) > 0.1
    write(tree | {"lm_head": {"kernel": np.ascontiguousarray(head.T)}})
    with pytest.raises(ValueError, match=r"lm_head\.kernel has shape \(17, 12\), the model needs"):
        load_model(tmp_path)
    write({k: v for k, v in tree.items() if k != "lm_head"})
    with pytest.raises(ValueError, match=r"missing tensors: lm_head\.kernel, which the config"):
        load_model(tmp_path)
    hf_model().config.save_pretrained(tmp_path)
    write(tree | {"lm_head": {"kernel": np.ascontiguousarray(table.T)}})
    assert read_checkpoint(tmp_path).cfg.tie_weights
    write(tree)
    with pytest.raises(ValueError, match=r"lm_head\.kernel is not transformer\.wte\.embedding,"):
        load_model(tmp_path)


def test_flax(tmp_path):
    theirs = hf_model()
    theirs.config.save_pretrained(tmp_path)
    tree = flax_tree(theirs)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert distance(tmp_path, hf_logits(theirs)) <= LOGITS
    assert read_checkpoint(tmp_path).dialect == "flax"
    kernel = tree["transformer"]["h"]["0"]["attn"]["c_proj"]["kernel"]
    tree["transformer"]["h"]["0"]["attn"]["c_proj"]["kernel"] = kernel.T.copy()
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack_serialize(tree))
    assert distance(tmp_path, hf_logits(theirs)) > 0.1


def test_all_round_trips_are_bit_for_bit(tmp_path):
    """Through every dialect that can hold the model, one after the other."""
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
@pytest.mark.parametrize("table", [name_tables.HUGGING_FACE, name_tables.NANOGPT, name_tables.FLAX])
def test_every_size_is_covered(preset, table):
    """Each parameter has one place in a tensor of theirs, and each place is a parameter's."""
    cfg = PRESETS[preset]
    shapes = parameter_shapes(cfg)
    names = [ours for row in table.rows for ours in row.ours]
    of_block = [name.format(n) for name in names if "{}" in name for n in range(cfg.n_layers)]
    whole = [name for name in names if "{}" not in name]
    assert len({*of_block, *whole}) == len(of_block) + len(whole)
    assert shapes.keys() <= {*of_block, *whole}
    assert {*of_block, *whole} - shapes.keys() <= {"out_head.weight"} | {
        name for name in of_block if ".W_" in name and not cfg.qkv_bias
    }


def state_of(cfg=TIED, table=name_tables.HUGGING_FACE):
    ours = {name: np.asarray(leaf) for name, leaf in leaves(model_of(cfg)).items()}
    return name_tables.to_dialect(table, cfg, ours)


def written(tmp_path, tensors, **config):
    save_hf(tmp_path, TIED, model_of(TIED))
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors"
    )
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return tmp_path


C_ATTN, C_PROJ = "transformer.h.1.attn.c_attn.weight", "transformer.h.0.mlp.c_proj.weight"
ZEROS = np.zeros


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"tok_emb.weight": ZEROS((17, 12), "f")},
            "two dialects at once: the course",
        ),
        ({"wte.weight": ZEROS((17, 12), "f")}, "two tensors for one place: transformer.wte.weight"),
        (
            {"transformer.h.1.attn.rotary": ZEROS(3, "f")},
            r"unexpected .*: transformer\.h\.1\.attn\.r",
        ),
        ({"h.1.attn.rotary": ZEROS(3, "f")}, r"prefix 'transformer\.': .* h\.1\.attn\.rotary does"),
        ({"score.weight": ZEROS(3, "f")}, r"unexpected tensors: score\.weight"),
        ({C_ATTN: None}, r"missing tensors: h\.1\.attn\.c_attn\.weight"),
        (
            {C_ATTN: ZEROS((12, 35), "f")},
            r"attn\.c_attn\.weight has 35 outputs, .* 3 times 12",
        ),
        ({C_ATTN: ZEROS((36, 12), "f")}, r"h\.1\.attn\.c_attn\.weight has 12 outputs"),
        ({C_ATTN: ZEROS(36, "f")}, r"has shape \(36,\), not 2 axes"),
        ({C_PROJ: ZEROS((12, 48), "f")}, r"c_proj\.weight has shape \(12, 48\), the model needs"),
        ({"transformer.wte.weight": ZEROS(17, "f")}, "wte.weight must be a matrix"),
        ({"transformer.ln_f.bias": np.full(12, np.nan, "f")}, "final_norm.shift holds NaN"),
        ({"transformer.ln_f.bias": ZEROS(12, np.int32)}, "final_norm.shift has type int32"),
        ({"lm_head.weight": ZEROS((17, 12), "f")}, r"lm_head\.weight is not .*wte\.weight, and"),
    ],
)
def test_tensors_that_are_no_gpt2(tmp_path, change, words):
    tensors = {k: v for k, v in (state_of() | change).items() if v is not None}
    with pytest.raises(ValueError, match=words) as error:
        load_model(written(tmp_path, tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_layer": 3}, "the config says 3 blocks, the tensors are of 2"),
        ({"n_embd": 24}, "the config says emb_dim=24"),
        ({"vocab_size": 18}, "the config says vocab_size=18"),
        ({"n_positions": 12}, "the config says context_length=12"),
        ({"n_head": 5}, "emb_dim=12 is not divisible by n_heads=5"),
        ({"n_inner": 13}, "the config says n_inner=13"),
        ({"activation_function": "gelu"}, "activation_function='gelu'; .* 'gelu_new'"),
        ({"model_type": "llama"}, "neither a config of this package"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": False}, "missing tensors: lm_head.weight"),
    ],
)
def test_a_config_that_contradicts(tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        load_model(written(tmp_path, state_of(), **config))


def test_no_dialect(tmp_path):
    safetensors.numpy.save_file({"a": ZEROS(3, "f")}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"no known dialect: none of tok_emb\.weight, wte"):
        load_model(tmp_path / "x.safetensors", n_heads=3)


def test_a_name_that_stands_twice(tmp_path):
    save_hf(tmp_path, TIED, model_of(TIED))
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes().replace(b"transformer.ln_f.weight", b'transformer.ln_f.bias":', 1)
    raw = path.read_bytes().replace(b"h.0.ln_1.weight", b"h.1.ln_1.weight", 1)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"is damaged, .*\(.*h\.1\.ln_1\.weight.*\)"):
        load_model(tmp_path)


def test_a_bit_that_turned_over_is_noticed(tmp_path):
    save_hf(tmp_path, TIED, model_of(TIED))
    path = tmp_path / "model.safetensors"
    raw = bytearray(path.read_bytes())
    load_model(tmp_path)
    for place in (len(raw) - 1, len(raw) - 4000):
        raw[place] ^= 4
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="checksum mismatch"):
            load_model(tmp_path)
        raw[place] ^= 4


def test_fine_tuned_elsewhere(tmp_path):
    """Biases that were absent here and are no longer 0 are kept, though our record is copied."""
    save_hf(tmp_path, CFG, model_of(CFG))
    theirs = transformers().GPT2LMHeadModel.from_pretrained(tmp_path, local_files_only=True).eval()
    with torch.no_grad():
        theirs.transformer.h[1].attn.c_attn.bias += 0.5
    theirs.save_pretrained(tmp_path / "tuned")
    assert load_model(tmp_path / "tuned")[0].cfg == BIASED
    assert distance(tmp_path / "tuned", hf_logits(theirs)) <= LOGITS


def test_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    save_hf(tmp_path, TIED, model_of(TIED))
    asked = []

    def download(repo, allow_patterns):
        asked.append((repo, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_model("gpt2-medium")[0].cfg == TIED
    of_tokenizer = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    files = ["config.json", "model.safetensors", *of_tokenizer]
    assert asked == [("openai-community/gpt2-medium", files)]

    def offline(repo, allow_patterns):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"gpt2 cannot be fetched .*\(no network\); fetch"):
        load_model("gpt2")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"fetching gpt2 needs huggingface_hub: run pip .*\[hub\]"):
        load_model("gpt2")


def test_names_without_a_config(tmp_path):
    """Only the heads have to be told."""
    safetensors.numpy.save_file(state_of(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="give n_heads"):
        load_model(tmp_path / "weights.safetensors")
    model, params = load_model(tmp_path / "weights.safetensors", n_heads=3)
    assert model.cfg == replace(TIED, drop_rate=model.cfg.drop_rate)
    assert same_bits(params, model_of(TIED))


def damaged(rng, path, tensors):
    """One change to a file: cut, a byte turned, a tensor renamed, reshaped, taken out, doubled."""
    kind = rng.integers(7)
    names = sorted(tensors)
    name = names[rng.integers(len(names))]
    if kind in (2, 3, 4, 5):
        tensors = dict(tensors)
        value = tensors.pop(name)
        if kind == 2:
            tensors[name[:-1] + "_"] = value
        elif kind == 3:
            tensors[name] = value.reshape(-1)[: rng.integers(1, value.size + 1)]
        elif kind == 4:
            tensors[name] = value.T.copy().reshape(value.T.shape)
        if path.suffix == ".safetensors":
            safetensors.numpy.save_file(tensors, path)
        else:
            state = {k: torch.tensor(v.astype(np.float32)) for k, v in tensors.items()}
            torch.save({"model": state, "model_args": ARGS} if path.name == "a.pt" else state, path)
        return {2: "renamed", 3: "reshaped", 4: "turned", 5: "left out"}[int(kind)]
    raw = bytearray(path.read_bytes())
    if kind == 0:
        path.write_bytes(raw[: rng.integers(len(raw))])
        return "cut"
    for _ in range(1 if kind == 1 else 20):
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    path.write_bytes(raw)
    return "flipped"


ARGS = {"n_layer": 2, "n_head": 3, "n_embd": 12, "block_size": 11, "vocab_size": 17, "bias": True}


def test_200_damaged_files(tmp_path):
    """Each is refused in one line that names it, or loads as the model that the file holds."""
    rng = np.random.default_rng(5)
    params = model_of(TIED)
    untied = model_of(BIASED)
    refused = {}
    for turn in range(200):
        folder = tmp_path / str(turn)
        kind = turn % 4
        if kind == 0:
            save_hf(folder, TIED, params)
            source = path = folder
            path = folder / "model.safetensors"
            tensors = state_of()
        elif kind == 1:
            source = path = folder / "a.pt"
            save_nanogpt(path, TIED, params)
            tensors = state_of(table=name_tables.NANOGPT)
        elif kind == 2:
            source = path = folder / "c.pth"
            save_course(path, BIASED, untied)
            tensors = leaves(untied)
        else:
            save_model(folder, BIASED, untied)
            source, path = folder, folder / "model.safetensors"
            tensors = leaves(untied)
        tensors = {k: np.asarray(v) for k, v in tensors.items()}
        expected = untied if kind > 1 else params
        what = damaged(rng, path, tensors)
        said = None
        try:
            _, found = load_model(source, n_heads=3)
        except ValueError as error:
            said = str(error)
        if said is not None:
            assert str(source) in said
            assert "\n" not in said
            refused[what] = refused.get(what, 0) + 1
        elif not same_bits(found, expected):
            # A square matrix that was saved transposed is a model like any other.
            assert what == "turned", turn
    assert sum(refused.values()) > 120
    assert refused.keys() >= {"cut", "flipped", "renamed", "reshaped", "left out"}
