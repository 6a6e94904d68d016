"""`obscura parity` reports equal models as equal, and finds and names each planted fault."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from obscura_jax.cli.main import main
from obscura_jax.interop.checkpoint import save_hf, save_model
from obscura_jax.interop.course_state import named_tensors
from obscura_jax.parity.gpt.compare import Outputs, PrecisionPair, findings
from obscura_jax.parity.gpt.lab import compare_implementations, default_precision_note
from obscura_jax.parity.gpt.page import as_html
from obscura_jax.parity.gpt.paired_runs import PairedRuns
from obscura_jax.parity.gpt.prompts import stress_prompts
from obscura_jax.parity.gpt.references import reference
from obscura_jax.parity.gpt.report import as_json, as_text, verdict
from obscura_jax.parity.gpt.verdict import Report
from tests.support import faults
from tests.support.models import (
    BIASED,
    TIED,
    course_model,
    model_of,
    params_of,
    transformers,
)

FAULTS = faults.__file__


@pytest.fixture
def native(tmp_path):
    save_model(tmp_path / "native", BIASED, model_of(BIASED))
    return str(tmp_path / "native")


def call(*words):
    try:
        main([str(word) for word in words])
    except SystemExit as exit_:
        return exit_.code
    return 0


def against(name, capsys, source, *more):
    code = call("parity", source, "--against", f"{FAULTS}:{name}", *more)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.slow
def test_our_reference_is_equal(native, tmp_path, capsys):
    files = ("--json", tmp_path / "r.json", "--html", tmp_path / "r.html")
    assert call("parity", native, *files) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.endswith("verdict: equal up to rounding\n")
    assert len(out.splitlines()) < 35
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["schema"] == "obscura_jax.parity/1"
    assert (report["verdict"], report["first"]) == ("equal up to rounding", None)
    titles = [section["title"] for section in report["sections"]]
    assert titles == ["forward pass", "gradients", "optimizer after 3 steps"]
    forward, gradients, optimizer = (section["tensors"] for section in report["sections"])
    assert [row["name"] for row in forward][:4] == [
        "tok_emb", "pos_emb", "embeddings", "trf_blocks.0.norm1"
    ]  # fmt: skip
    params = named_tensors(BIASED, model_of(BIASED))
    assert {row["name"] for row in gradients} == params.keys()
    assert len(optimizer) == 3 * len(params)
    assert all(row["equal"] for rows in (forward, gradients, optimizer) for row in rows)
    assert [row["differs_at"] for row in report["tokens"]] == [None] * 5
    assert "equal up to rounding" in (tmp_path / "r.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["InPlace", "Plain"])
def test_a_correct_module_of_a_user_is_equal(native, capsys, name):
    code, out, _ = against(name, capsys, native, "--steps", 1, "--new-tokens", 4)
    assert (code, out.splitlines()[-1]) == (0, "verdict: equal up to rounding")
    assert "not found in the PyTorch module" not in out


@pytest.mark.slow
def test_a_trained_model_is_equal(capsys):
    """Gradients of a trained model are small, and its activations are unlike random ones."""
    assert call("parity", "tiny", "--new-tokens", 4) == 0
    assert capsys.readouterr().out.endswith("verdict: equal up to rounding\n")


# Float32Norm has the smallest difference, 1e-7 in float64.
@pytest.mark.parametrize(
    ("name", "where", "why"),
    [
        ("TransposedMatrix", "trf_blocks.1.att.out_proj", "transposed"),
        ("SwappedProjections", "trf_blocks.0.att.context", "the operands in the other order"),
        ("OtherEpsilon", "trf_blocks.0.norm2", "1e-06 instead of 1e-05"),
        ("ExactGelu", "trf_blocks.0.ff.layers.1", "gelu(approximate=False)"),
        ("MissingBias", "trf_blocks.1.ff.layers.2", "at linear.py:"),
        ("WrongMask", "trf_blocks.0.att.context", "our tril at attention.py:"),
        ("NoScale", "trf_blocks.0.att.context", "leaving out div"),
        ("WrongHeads", "trf_blocks.0.att.context", "before they are merged"),
        ("UnbiasedVariance", "final_norm", "PyTorch's var at faults.py:"),
        ("Float32Norm", "final_norm", "PyTorch rounds to lower precision at faults.py:"),
        ("NoShortcut", "trf_blocks.1", "leaving out add"),
        ("PositionsFromOne", "embeddings", "PyTorch's slice at faults.py:"),
        ("DetachedNorm", r"pos_emb.weight (gradients)", "the cause is unknown"),
        ("Frozen", "trf_blocks.1.ff.layers.2.bias (gradients)", "the cause is unknown"),
        ("Nudged", "logits", "PyTorch's add at faults.py:"),
    ],
)
def test_a_planted_fault_is_found_and_explained(native, capsys, tmp_path, name, where, why):
    path = tmp_path / "r.json"
    code, out, err = against(name, capsys, native, "--steps", 1, "--new-tokens", 4, "--json", path)
    assert (code, err) == (1, "")
    last = out.splitlines()[-1]
    assert last.startswith(f"verdict: differs, first at {where}, by ")
    assert why in last
    report = json.loads(path.read_text())
    first, places = report["first"], report["sections"][0]["places"]
    assert first["tensor"] == where.removesuffix(" (gradients)")
    assert why in (first["cause"] or "the cause is unknown")
    assert bool(places) == (" (gradients)" not in where and name != "Float32Norm")
    if places:
        theirs, ours = places[0]["torch"]["source"], places[0]["jax"]["source"]
        assert f"{Path(theirs['file']).name}:{theirs['line']}" in last
        assert f"{Path(ours['file']).name}:{ours['line']}" in last
        assert "places where they part (PyTorch, then JAX)" in out


def swapped_heads(params):
    """Order rows by width, then head, as a wrong split of fused weights does."""
    att = params["trf_blocks"]["1"]["att"]
    order = np.arange(12).reshape(3, 4).T.reshape(-1)
    att["W_value"] = {name: x[order] for name, x in att["W_value"].items()}
    return params


def other_block(params):
    blocks = params["trf_blocks"]
    blocks["1"]["ff"]["layers"]["0"] = blocks["0"]["ff"]["layers"]["0"]
    return params


def swapped_norms(params):
    block = params["trf_blocks"]["0"]
    block["norm1"], block["norm2"] = block["norm2"], block["norm1"]
    return params


def swapped_weights(params):
    att = params["trf_blocks"]["0"]["att"]
    att["W_key"] = att["W_value"]
    return params


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "where", "why"),
    [
        (swapped_heads, "trf_blocks.1.att.W_value", "PyTorch's bmm at torch_reference.py:"),
        (other_block, "trf_blocks.1.ff.layers.0", "trf_blocks.1.ff.layers.0.weight of PyTorch"),
        (swapped_norms, "trf_blocks.0.norm1", "multiplying by params.trf_blocks.0.norm2.scale"),
        (swapped_weights, "trf_blocks.0.att.W_key", "params.trf_blocks.0.att.W_key.weight"),
    ],
)
def test_weights_in_the_wrong_place_are_found(change, where, why):
    """The reference has the weights of a wrong conversion."""
    wrong = named_tensors(BIASED, change(model_of(BIASED)))
    report = compare_implementations(
        "x", BIASED, model_of(BIASED), reference("course", BIASED, wrong), steps=1
    )
    section, row = report.first
    assert (row.name, section.title) == (where, "forward pass")
    assert why in section.cause
    assert where in verdict(report)


@pytest.mark.slow
def test_transformers_is_equal(tmp_path, capsys):
    """Transformers reads the files itself, which tests our reading of weights and epsilon too."""
    transformers()
    save_hf(tmp_path, TIED, model_of(TIED))
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace("1e-05", "2e-05"))
    assert call("parity", tmp_path, "--against", "hf", "--steps", 1) == 0
    out, _ = capsys.readouterr()
    assert "compared with transformers 5" in out
    cfg, other = replace(TIED, ln_eps=2e-5), model_of(TIED, seed=1)
    theirs = reference("hf", cfg, named_tensors(cfg, other), str(tmp_path))
    report = compare_implementations("x", cfg, other, theirs, steps=0, new_tokens=0)
    assert report.first[1].name == "tok_emb"


def test_a_near_tie_is_reported_as_one(tmp_path, native, capsys):
    state = {name: x.numpy() for name, x in course_model().state_dict().items()}
    # Hidden states are nearly the shift; two rows of the head are nearly equal and parallel to it.
    state["final_norm.scale"] *= 0.01
    head = state["out_head.weight"]
    head[3] = head[5] = 3 * state["final_norm.shift"]
    head[3, 0] = np.nextafter(head[3, 0], np.float32(9))
    params = params_of(state, BIASED)
    save_model(tmp_path / "m", BIASED, params)
    code, out, _ = against("TurnedTie", capsys, tmp_path / "m", "--steps", 1)
    different = [line for line in out.splitlines() if "differ at token" in line]
    assert different
    assert all(line.endswith(", a near-tie") for line in different)
    assert (code, out.splitlines()[-1]) == (0, "verdict: equal up to rounding")
    code, out, _ = against("Nudged", capsys, native, "--steps", 1)
    assert code == 1
    assert any(line.endswith(", not a near-tie") for line in out.splitlines())


def finding(float32, float64):
    """Return the finding on one tensor, given as (ours, theirs) in both precisions."""
    runs = (Outputs(*({"x": x} for x in pair)) for pair in (float32, float64))
    return findings(PrecisionPair(*runs))[0]


def test_a_difference_that_does_not_shrink_with_precision_is_a_bug():
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(3, 5))

    def off(scale, size, dtype):
        return (exact + scale * size * rng.normal(size=exact.shape)).astype(dtype)

    def equal(bug, noise=1.0):
        low, high = 1e-7 * noise, 2e-16 * noise
        float32 = off(1, low, np.float32), off(1, low, np.float32) + np.float32(bug)
        float64 = off(1, high, np.float64), off(1, high, np.float64) + bug
        return finding(float32, float64).equal

    assert equal(0)
    assert equal(0, noise=1e4)  # a badly conditioned tensor is not a bug
    for bug in (1e-1, 1e-4, 1e-7, 1e-10, 1e-12):
        assert not equal(bug), bug
    nan = np.full((2, 2), np.nan)
    x = np.ones((2, 2))
    assert finding((x, nan), (x, nan)).note == "NaN or infinite in theirs, in float64"
    assert "shape (2,)" in finding((x, x[0]), (x, x[0])).note


def test_stress_prompts_have_few_shapes_and_rare_tokens():
    prompts = stress_prompts(BIASED)
    assert prompts["full context"].shape == (1, 11)
    assert prompts["batch of 3"].shape == (3, 11)
    assert len(set(prompts["one repeated token"][0].tolist())) == 1
    assert prompts["rare tokens"].min() >= 17 - 2
    assert 16 in prompts["<|endoftext|> inside"]
    assert {p.shape for p in prompts.values()} == {(1, 11), (3, 11)}
    again = stress_prompts(BIASED)
    assert all(np.array_equal(again[name], prompts[name]) for name in prompts)


def test_notes_are_in_every_format():
    flat = named_tensors(BIASED, model_of(BIASED))
    runs = PairedRuns(BIASED, flat, reference("course", BIASED, flat))
    note = default_precision_note(runs, stress_prompts(BIASED)["batch of 3"])
    assert note.startswith("with the default matrix products of cpu the float32 logits would")
    report = Report("x", "y", BIASED, [], [], [note])
    for text in (as_text(report), as_html(report), as_json(report)):
        assert note in text
    assert json.loads(as_json(report))["tokens"] == []


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("Extra", "has parameters that the weights lack: extra"),
        ("Wide", r"tok_emb\.weight has shape \(18, 12\), but the weights have \(17, 12\)"),
        ("Unbuildable", "Unbuildable does not build: KeyError: 'n_embd'"),
        ("Failing", "Failing fails on a prompt: RuntimeError: shapes do not fit"),
        ("NoGradient", "NoGradient fails on a prompt: RuntimeError: element 0 of tensors does not"),
        ("NoModule", "NoModule is not a torch.nn.Module"),
        ("Nothing", r"faults\.py has no Nothing; it has Attention and \d+ more"),
    ],
)
def test_unusable_modules_are_one_line_and_exit_code_2(native, capsys, what, words):
    code, out, err = against(what, capsys, native)
    assert (code, out) == (2, "")
    assert re.search(words, err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("nobody", "--against takes course, hf or FILE.py:CLASS, not 'nobody'"),
        ("no.py:Model", "there is no file no.py"),
        ("BROKEN:Model", "does not run: SyntaxError"),
    ],
)
def test_bad_names_of_the_pytorch_side_are_one_line(native, capsys, tmp_path, spec, words):
    (tmp_path / "broken.py").write_text("class Model(:\n")
    spec = spec.replace("BROKEN", str(tmp_path / "broken.py"))
    assert call("parity", native, "--against", spec) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(("package", "kind"), [("torch", "course"), ("transformers", "hf")])
def test_missing_packages_are_named(native, capsys, monkeypatch, package, kind):
    monkeypatch.setitem(sys.modules, package, None)
    assert call("parity", native, "--against", kind) == 2
    err = capsys.readouterr().err
    assert f"needs {package}: run pip install -e '.[" in err
    assert err.count("\n") == 1


def test_a_nan_in_the_weights_is_refused(tmp_path, capsys):
    state = course_model().state_dict()
    state["final_norm.scale"][2] = np.nan
    torch.save(state, tmp_path / "x.pth")
    assert call("parity", tmp_path / "x.pth", "--n-heads", 3) == 2
    assert "final_norm.scale holds NaN" in capsys.readouterr().err
