"""Damaged models, and tensors that are not a model, are refused in one line."""

import itertools
from collections import defaultdict

import numpy as np
import pytest
import torch

from obscura_jax.interop import name_tables
from obscura_jax.interop.checkpoint import (
    load_model,
    save_course,
    save_hf,
    save_model,
    save_nanogpt,
)
from tests.support.checkpoints import hf_folder_of, save_tensors, state_of
from tests.support.models import BIASED, CFG, NANOGPT_ARGS, TIED, leaves, model_of, same_bits
from tests.support.rounds import rounds

ZEROS = np.zeros
C_ATTN, C_PROJ = "transformer.h.1.attn.c_attn.weight", "transformer.h.0.mlp.c_proj.weight"
V, D = CFG.vocab_size, CFG.emb_dim


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tok_emb.weight": ZEROS((V, D), "f")}, "names of two dialects: the course"),
        (
            {"wte.weight": ZEROS((V, D), "f")},
            r"transformer\.wte\.weight and wte\.weight are the same",
        ),
        (
            {"transformer.h.1.attn.rotary": ZEROS(3, "f")},
            r"unexpected .*: transformer\.h\.1\.attn\.r",
        ),
        ({"h.1.attn.rotary": ZEROS(3, "f")}, r"prefix 'transformer\.': .* h\.1\.attn\.rotary does"),
        ({"score.weight": ZEROS(3, "f")}, r"unexpected tensors: score\.weight"),
        ({C_ATTN: None}, r"missing tensors: h\.1\.attn\.c_attn\.weight"),
        ({C_ATTN: ZEROS((12, 35), "f")}, r"c_attn\.weight has shape \(12, 35\), .* needs \(12, 36"),
        ({C_ATTN: ZEROS((36, 12), "f")}, r"h\.1\.attn\.c_attn\.weight has shape \(36, 12\), but"),
        (
            {C_ATTN: ZEROS(36, "f")},
            r"c_attn\.weight has shape \(36,\), but the model needs \(12, 36",
        ),
        ({C_PROJ: ZEROS((12, 48), "f")}, r"c_proj\.weight has shape \(12, 48\), but .* \(48, 12\)"),
        ({"transformer.wte.weight": ZEROS(V, "f")}, r"wte\.weight has shape .*needs a matrix"),
        ({"transformer.ln_f.bias": np.full(D, np.nan, "f")}, r"transformer\.ln_f\.bias holds NaN"),
        ({"transformer.ln_f.bias": ZEROS(D, np.int32)}, r"transformer\.ln_f\.bias has type int32;"),
        ({"lm_head.weight": ZEROS((V, D), "f")}, r"lm_head\.weight is not .*wte\.weight, but"),
    ],
)
def test_tensors_that_are_no_gpt2_are_refused_in_one_line(tmp_path, change, words):
    tensors = {k: v for k, v in (state_of() | change).items() if v is not None}
    with pytest.raises(ValueError, match=words) as error:
        load_model(hf_folder_of(tmp_path, tensors))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_layer": 3}, "the config says n_layers=3, but the file has 2"),
        ({"n_embd": 24}, "the config says emb_dim=24"),
        ({"vocab_size": V + 1}, f"the config says vocab_size={V + 1}, but .*wte.weight has {V}"),
        ({"n_positions": 12}, "the config says context_length=12, but .*wpe.weight has 11"),
        ({"n_head": 5}, "emb_dim=12 is not divisible by n_heads=5"),
        ({"n_inner": 13}, "the config says n_inner=13"),
        ({"activation_function": "gelu"}, "activation_function='gelu'; .* 'gelu_new'"),
        ({"model_type": "llama"}, "neither a config of this package"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"tie_word_embeddings": False}, "missing tensors: lm_head.weight"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path, config, words):
    with pytest.raises(ValueError, match=words):
        load_model(hf_folder_of(tmp_path, state_of(), **config))


def test_names_of_no_dialect_are_refused(tmp_path):
    save_tensors(tmp_path / "x.safetensors", {"a": ZEROS(3, "f")})
    with pytest.raises(ValueError, match=r"no known dialect: none of tok_emb\.weight, wte"):
        load_model(tmp_path / "x.safetensors", n_heads=3)


def test_a_name_that_appears_twice_in_a_header_is_refused(tmp_path):
    save_hf(tmp_path, TIED, model_of(TIED))
    path = tmp_path / "model.safetensors"
    raw = path.read_bytes().replace(b"h.0.ln_1.weight", b"h.1.ln_1.weight", 1)
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=r"is damaged, .*\(.*h\.1\.ln_1\.weight.*\)"):
        load_model(tmp_path)


def test_a_flipped_bit_is_detected(tmp_path):
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


def damaged(rng, path, tensors):
    """Damage a file, or a tensor in it; return a word for how."""
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
            save_tensors(path, tensors)
        else:
            state = {k: torch.tensor(v.astype(np.float32)) for k, v in tensors.items()}
            of_nanogpt = {"model": state, "model_args": NANOGPT_ARGS}
            torch.save(of_nanogpt if path.name == "a.pt" else state, path)
        return {2: "renamed", 3: "reshaped", 4: "turned", 5: "left out"}[int(kind)]
    raw = bytearray(path.read_bytes())
    if kind == 0:
        path.write_bytes(raw[: rng.integers(len(raw))])
        return "cut"
    for _ in range(1 if kind == 1 else 20):
        raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
    path.write_bytes(raw)
    return "flipped"


def test_a_damaged_file_is_refused_or_loads_as_what_it_holds(tmp_path):
    """An error is one line that names the file."""
    rng = np.random.default_rng(5)
    params = model_of(TIED)
    untied = model_of(BIASED)
    errors = defaultdict(list)
    for turn in range(n_files := rounds(40, 200)):
        folder = tmp_path / str(turn)
        kind = turn % 4
        if kind == 0:
            save_hf(folder, TIED, params)
            source, path, tensors = folder, folder / "model.safetensors", state_of()
        elif kind == 1:
            save_nanogpt(path := folder / "a.pt", TIED, params)
            source, tensors = path, state_of(table=name_tables.NANOGPT)
        elif kind == 2:
            save_course(path := folder / "c.pth", BIASED, untied)
            source, tensors = path, leaves(untied)
        else:
            save_model(folder, BIASED, untied)
            source, path, tensors = folder, folder / "model.safetensors", leaves(untied)
        tensors = {k: np.asarray(v) for k, v in tensors.items()}
        expected = untied if kind > 1 else params
        what = damaged(rng, path, tensors)
        try:
            found = load_model(source, n_heads=3)[1]
        except ValueError as error:
            errors[what].append((source, str(error)))
        else:  # a square matrix that was saved transposed is a model like any other
            assert same_bits(found, expected) or what == "turned", turn
    for source, error in itertools.chain(*errors.values()):
        assert str(source) in error
        assert "\n" not in error
    assert sum(map(len, errors.values())) > 0.6 * n_files
    assert errors.keys() >= {"cut", "flipped", "renamed", "reshaped", "left out"}
