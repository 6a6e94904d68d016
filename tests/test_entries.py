"""The model is found among what a training run saves with it, or chosen by name."""

import os
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import safetensors.torch
import torch
from flax.serialization import msgpack_serialize

from obscura_jax.cli.main import main
from obscura_jax.interop import name_tables, pickled_numpy
from obscura_jax.interop.checkpoint import load_model, read_checkpoint
from tests.support import checkpoints
from tests.support.checkpoints import flax_tree
from tests.support.models import (
    BIASED,
    NANOGPT_ARGS,
    TIED,
    bits,
    course_model,
    hf_model,
    leaves,
    model_of,
    same_bits,
)


def state_of(seed=0):
    return course_model(seed=seed).state_dict()


def around():
    """Return entries that a training run saves: tensors, numbers, states of generators."""
    model = course_model()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 3, dtype=torch.int64)).sum().backward()
    optimizer.step()
    return {
        "optimizer": optimizer.state_dict(),
        "lr_schedulers": [{"last_epoch": 3, "base_lrs": [1e-3]}],
        "epoch": 3,
        "loss": torch.tensor(2.5),
        "metrics": {"accuracy": torch.tensor([0.5]), "best": np.float64(0.25)},
        "rng": {
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state(),
            "generator": np.random.default_rng(0).bit_generator.state,
            "python": random.getstate(),
        },
    }


def refused(path, words, **kwargs):
    with pytest.raises(ValueError, match=words) as error:
        load_model(path, n_heads=3, **kwargs)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.ckpt"])
@pytest.mark.parametrize(
    "wrapping",
    [
        lambda state: {**around(), "model": state},
        lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, **around()},
        lambda state: {"checkpoint": {"model": state, **around()}},
        lambda state: {"checkpoint": {"model": state}, **around()},
        lambda state: {**state, "epoch": 3, "config": {"n_heads": 3}},
        lambda state: OrderedDict(state),
    ],
)
def test_the_only_model_is_found(tmp_path, name, wrapping):
    torch.save(wrapping(state_of()), tmp_path / name)
    model, params = load_model(tmp_path / name, n_heads=3)
    assert model.cfg == BIASED
    assert same_bits(params, model_of(BIASED))
    assert not same_bits(params, model_of(BIASED, seed=1))


def test_one_of_two_models_must_be_chosen(tmp_path):
    path = tmp_path / "x.pt"
    ema = {f"module.{k}": v for k, v in state_of(1).items()}
    torch.save({**around(), "model": state_of(), "ema": ema}, path)
    refused(path, r"holds 2 models, its entries model and ema; choose .* \(--entry model\)")
    refused(path, "entry 'emma' does not exist; choose one of model, ema", entry="emma")
    refused(path, "entry 'optimizer' is not a model; choose one of model, ema", entry="optimizer")
    refused(path, "entry 'metrics' is not a model; choose one of model, ema", entry="metrics")
    for entry, seed in (("model", 0), ("ema", 1)):
        _, params = load_model(path, n_heads=3, entry=entry)
        assert same_bits(params, model_of(BIASED, seed))
        assert not same_bits(params, model_of(BIASED, 1 - seed))


def test_entries_of_entries_are_found(tmp_path):
    path = tmp_path / "x.ckpt"
    first, second = ({"model": state_of(n), "step": n} for n in (0, 1))
    torch.save({"last": first, "best": second, "hyper_parameters": {"n_heads": 3}}, path)
    refused(path, r"its entries last\.model and best\.model; choose")
    refused(path, r"'model' holds 2 models; choose one of last\.model, best\.model", entry="model")
    for entry in ("best", "best.model"):
        model, params = load_model(path, entry=entry)
        assert model.cfg == BIASED
        assert same_bits(params, model_of(BIASED, 1))
    # A state dict is itself the model; a state dict inside it can be chosen.
    torch.save({**state_of(), "ema": state_of(1)}, path)
    assert same_bits(load_model(path, n_heads=3)[1], model_of(BIASED))
    assert same_bits(load_model(path, n_heads=3, entry="ema")[1], model_of(BIASED, 1))
    torch.save(state_of(), path)
    refused(path, "'ema' does not exist; no entry is a model", entry="ema")


def test_the_settings_around_the_chosen_entry_are_read(tmp_path):
    """Settings of nanoGPT inside an entry, and a course config where Lightning stores its own."""
    of_nanogpt = checkpoints.state_of(table=name_tables.NANOGPT)
    model = {"model": {k: torch.tensor(np.asarray(v)) for k, v in of_nanogpt.items()}}
    torch.save(
        {"checkpoint": {**model, "model_args": NANOGPT_ARGS, "iter_num": 3}}, tmp_path / "a.pt"
    )
    checkpoint = read_checkpoint(tmp_path / "a.pt")
    assert (checkpoint.dialect, checkpoint.cfg.n_heads) == ("nanogpt", 3)
    assert same_bits(checkpoint.params, model_of(TIED))
    for settings in ({"n_heads": np.int64(3)}, {"config": {"n_heads": "3"}, "lr": 1e-3}):
        content = {"state_dict": state_of(), "hyper_parameters": settings}
        torch.save(content, tmp_path / "b.ckpt")
        assert load_model(tmp_path / "b.ckpt")[0].cfg == BIASED


def test_an_entry_of_a_file_without_entries_is_refused(tmp_path, native):
    safetensors.torch.save_file(state_of(), tmp_path / "x.safetensors")
    for source in (tmp_path / "x.safetensors", native / "model.safetensors", "torch-seed:1:tiny"):
        refused(source, r"has no entries to choose from; leave entry \(--entry\) out", entry="ema")


def test_every_command_takes_the_entry_option(tmp_path, capsys):
    path = tmp_path / "x.pt"
    torch.save({"model": state_of(), "ema": state_of(1)}, path)
    for words in (
        ["info", path],
        ["convert", path, tmp_path / "out"],
        ["export", path, tmp_path / "out"],
        ["parity", path],
        ["generate", "x", "--model", path],
    ):
        words = [*map(str, words), "--n-heads", "3"]
        for more, said in (
            ([], "holds 2 models, its entries model and ema; choose one with entry='model' (--"),
            (["--entry", "none"], "the entry 'none' does not exist; choose one of model, ema"),
        ):
            with pytest.raises(SystemExit) as end:
                main([*words, *more])
            out, err = capsys.readouterr()
            assert (end.value.code, out, err.count("\n")) == (2, "", 1)
            assert said in err
            assert str(path) in err
        assert not (tmp_path / "out").exists()
    main(["convert", str(path), str(tmp_path / "out"), "--n-heads", "3", "--entry", "ema"])
    assert same_bits(load_model(tmp_path / "out")[1], model_of(BIASED, 1))
    assert "tok_emb.weight -> tok_emb.weight" in capsys.readouterr().out


def test_the_parameters_in_a_flax_training_state_are_read(tmp_path):
    theirs = hf_model()
    tree = flax_tree(theirs)
    trees = [{"params": tree}, {"params": {"params": tree}}]
    trees += [{"step": 3, "params": tree, "opt_state": {"0": {"count": 3, "mu": tree}}}]
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack_serialize(tree))
    expected = bits(leaves(load_model(path, n_heads=3)[1]))
    for content in trees:
        path.write_bytes(msgpack_serialize(content))
        assert bits(leaves(load_model(path, n_heads=3)[1])) == expected
    path.write_bytes(msgpack_serialize({"params": tree["transformer"]["h"]}))
    refused(path, "no known dialect")


@pytest.mark.parametrize("zipped", [True, False])
def test_numpy_numbers_in_a_checkpoint_are_read(tmp_path, zipped):
    """Metrics are ignored, a size is read; the values are those that NumPy would return."""
    types = "?bhilqBHILQefd"
    numbers = {code: np.dtype(code).type(3) for code in types}
    others = {
        "text": np.str_("x"),
        "time": np.datetime64("2020-01-01"),
        "complex": np.complex64(1j),
        "array": np.arange(6.0).reshape(2, 3),
        "records": np.zeros(2, [("a", "i4"), ("b", "O")]),
        "type": np.dtype("f4"),
        "swapped": np.arange(3, dtype=">i2"),
    }
    content = {"model": state_of(), "n_heads": np.int32(3), "numbers": numbers, **others}
    path = tmp_path / "x.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert load_model(path)[0].cfg == BIASED
    with torch.serialization.safe_globals(pickled_numpy.STAND_INS):
        found = torch.load(path, weights_only=True)
    for code, number in numbers.items():
        assert found["numbers"][code] == number
        assert found["numbers"][code].dtype == number.dtype
    kinds = (pickled_numpy.Unread, pickled_numpy.PickledType)
    assert all(isinstance(found[name], kinds) for name in others)
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(path, weights_only=True)  # the exceptions end with the block


def test_a_scalar_with_bytes_of_another_type_is_ignored():
    double = pickled_numpy.PickledType("f8", False, True)
    assert pickled_numpy.scalar(double, b"\0" * 6 + b"\xf0\x3f") == 1.0
    double.__setstate__((3, ">", None))
    assert pickled_numpy.scalar(double, b"\x3f\xf0" + b"\0" * 6) == 1.0
    for kind, data in (
        (double, b"\0" * 7),
        (double, None),
        (None, b"\0" * 8),
        (pickled_numpy.PickledType("O"), b"\x41" * 8),
        (pickled_numpy.PickledType("V8"), b"\x41" * 8),
        (pickled_numpy.PickledType("i4,O"), b"\x41" * 12),
        (pickled_numpy.PickledType("no"), b""),
        (pickled_numpy.PickledType(3), b""),
    ):
        assert isinstance(pickled_numpy.scalar(kind, data), pickled_numpy.Unread)


class Call:
    """An object that calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_next_to_a_numpy_number_is_named_and_not_run(tmp_path, zipped, protocol):
    witness = tmp_path / "witness"
    evil = Call(os.system, f"touch {witness}")
    for hidden in (evil, np.array([evil], object), {"deep": [np.array([[evil]], object)]}):
        content = {"best": np.float64(1.0), "model": state_of(), "hidden": hidden}
        path = tmp_path / "x.pth"
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        refused(path, r"refused: its pickle calls (posix|nt)\.system,")
        assert not witness.exists()


@pytest.mark.parametrize("function", [np.fromfile, np.frombuffer, np.load])
def test_other_numpy_functions_are_refused(tmp_path, function):
    call = Call(function, str(tmp_path / "x.pth"))
    torch.save({"best": np.float64(1.0), "model": state_of(), "x": call}, tmp_path / "x.pth")
    refused(tmp_path / "x.pth", rf"refused: its pickle calls numpy\S*{function.__name__},")
