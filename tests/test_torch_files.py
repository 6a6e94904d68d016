"""Course checkpoints keep every bit both ways, and no code in a pickle is run."""

import os
import pickle
import sys
import warnings

import numpy as np
import pytest
import torch

from obscura_jax.interop.checkpoint import load_model, read_checkpoint, save_course, save_model
from tests.support.models import BIASED, CFG, LOGITS, bits, course_model, difference, leaves


@pytest.mark.parametrize("cfg", [CFG, BIASED])
def test_course_to_native_to_course_keeps_every_bit(tmp_path, cfg):
    rng = np.random.default_rng(1)
    state = course_model(cfg).state_dict()
    for name, tensor in state.items():
        if "mask" not in name:
            values = torch.from_numpy(
                rng.integers(0, 2**32, tensor.shape, np.uint32).view(np.float32)
            )
            state[name] = torch.where(values.isfinite(), values, -0.0)
            state[name].flatten()[:2] = torch.tensor([-0.0, 1e-45])
    torch.save(state, tmp_path / "a.pth")
    first = read_checkpoint(tmp_path / "a.pth", n_heads=3)
    save_model(tmp_path / "native", first.cfg, first.params)
    second = read_checkpoint(tmp_path / "native")
    save_course(tmp_path / "b.pth", second.cfg, second.params)
    back = torch.load(tmp_path / "b.pth", weights_only=True)
    assert bits(back) == bits(state)
    assert {x.dtype for x in back.values()} == {torch.float32}
    assert (first.dialect, second.dialect) == ("course", "native")
    assert first.cfg == second.cfg == cfg
    back["final_norm.shift"][1] += 1e-45
    assert bits(back) != bits(state)


def test_the_written_checkpoint_is_the_same_model_in_torch(tmp_path, course):
    model, params = load_model(course[0], n_heads=3)
    save_course(tmp_path / "back.pth", model.cfg, params)
    reference = course_model(seed=1)
    assert difference(model, params, reference) > 100 * LOGITS
    reference.load_state_dict(torch.load(tmp_path / "back.pth", weights_only=True), strict=True)
    assert difference(model, params, reference) <= LOGITS


@pytest.mark.parametrize("name", ["W_query", "W_key", "W_value", "out_proj"])
def test_a_transposed_square_matrix_gives_another_model(tmp_path, course, name):
    path, state = course
    name = f"trf_blocks.1.att.{name}.weight"
    torch.save({**state, name: state[name].T.contiguous()}, path)
    assert difference(*load_model(path, n_heads=3), course_model()) > 100 * LOGITS
    torch.save({**state, name: state[name].T.contiguous().T}, path)  # the values, column by column
    assert difference(*load_model(path, n_heads=3), course_model()) <= LOGITS


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}


@pytest.mark.parametrize(
    ("wrapping", "says_heads"),
    [
        (lambda state: {"model_state_dict": state, "optimizer_state_dict": OPTIMIZER}, False),
        (lambda state: {"model": state, "epoch": 3, "loss": torch.tensor(2.5)}, False),
        (lambda state: {"model": state, "config": BIASED.to_dict()}, True),
        (lambda state: {"model": state, "cfg": {"n_heads": 3, "lr": 1e-3, 7: None}}, True),
        (lambda state: {1: state, 2: OPTIMIZER, 3: {"n_heads": 3}}, True),
        (lambda state: {"model": {k: torch.nn.Parameter(v) for k, v in state.items()}}, False),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_is_found_among_the_entries(course, wrapping, says_heads, zipped):
    path, state = course
    expected = bits(leaves(load_model(path, n_heads=3)[1]))
    torch.save(wrapping(state), path, _use_new_zipfile_serialization=zipped)
    if says_heads:
        assert load_model(path)[0].cfg == BIASED
        with pytest.raises(ValueError, match="has n_heads=3, not 4"):
            load_model(path, n_heads=4)
    else:
        with pytest.raises(ValueError, match="give n_heads"):
            load_model(path)
    model, params = load_model(path, n_heads=3)
    assert model.cfg == BIASED
    assert bits(leaves(params)) == expected


def test_a_flipped_bit_in_a_checkpoint_never_gives_another_model(course):
    path, _ = course
    whole = path.read_bytes()
    expected = bits(leaves(load_model(path, n_heads=3)[1]))
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.choice(len(whole), 250, replace=False):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            read = load_model(path, n_heads=3)[1]
        except ValueError:
            refused += 1
        else:  # in the padding between the tensors
            assert bits(leaves(read)) == expected
    assert 125 < refused < 250


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds an object of type list"),
        (3, "holds an object of type int"),
        (torch.zeros(3), "holds an object of type Tensor"),
        ({}, r"holds 0 state dicts \(its entries: none\)"),
        ({"a": 1, 2: "b"}, r"holds 0 state dicts \(its entries: a, 2\)"),
        ({"a": {"x": torch.zeros(1)}, "b": {"x": torch.zeros(1)}}, "holds 2 state dicts"),
        ({3: torch.zeros(1)}, "the state dict has a tensor of the name 3, not text"),
        ({"a": torch.zeros(1), "b": 3}, "of no known dialect: .* the first are: a"),
        ({"a": torch.zeros(3).to_sparse()}, "a is not a plain array"),
        ({"a": torch.zeros(3, device="meta")}, "a is not a plain array"),
        ({"a": torch.zeros(3).to(torch.float8_e4m3fn)}, "a is not a plain array"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path, content, words):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "x.pth", n_heads=3)


def test_warnings_of_torch_are_not_shown(course):
    path, state = course
    torch.save(state, path, pickle_protocol=3)  # "might not support all instructions"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_model(path, n_heads=3)
        assert seen == []
        torch.load(path, weights_only=True)
        assert len(seen) == 1


class Code:
    """An object that runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["pickle", "zip", "legacy"])
def test_code_in_a_pickle_is_named_and_not_run(tmp_path, protocol, kind):
    witness = tmp_path / "witness"
    content = {"tok_emb.weight": Code(f"touch {witness}"), "pos_emb.weight": torch.zeros(3)}
    path = tmp_path / "x.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(content["tok_emb.weight"], protocol))
    else:
        torch.save(
            content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip"
        )
    with pytest.raises(ValueError, match=r"x\.pth refused: its pickle calls (posix|nt)\.system,"):
        load_model(path, n_heads=3)
    assert not witness.exists()
    if kind == "pickle":  # the file is what it is said to be
        pickle.loads(path.read_bytes())
        assert witness.exists()


def test_a_pickled_module_is_refused(tmp_path):
    torch.save(course_model(), tmp_path / "x.pth")
    words = (
        r"calls obscura_jax\.parity\.gpt\.torch_reference\.GPTModel, .*"
        r" save model\.state_dict\(\), not the model"
    )
    with pytest.raises(ValueError, match=words):
        load_model(tmp_path / "x.pth", n_heads=3)


def test_only_pytorch_files_need_torch(tmp_path, course, native, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    model, params = load_model(native)
    save_model(tmp_path / "copy", model.cfg, params)
    with pytest.raises(ValueError, match=r"reading .*course\.pth needs torch: run pip install"):
        load_model(course[0], n_heads=3)
    with pytest.raises(ValueError, match=r"writing a PyTorch file needs torch: run pip install"):
        save_course(tmp_path / "x.pth", model.cfg, params)
    assert not (tmp_path / "x.pth").exists()
