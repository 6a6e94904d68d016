"""An exported model gives the same tokens, with and without this package; damage is noticed."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from obscura_jax import generate, save_model
from obscura_jax.cli.main import main
from obscura_jax.export.artifact import load_artifact
from obscura_jax.export.exporter import PLATFORMS, export_model
from obscura_jax.safetensors_files import write_safetensors
from tests.support import processes
from tests.support.exported import CFG, decided_model

SCRIPT = Path(__file__).parents[1] / "tools" / "run_artifact.py"
PROMPTS = [[1, 2, 3, 4, 5], [300], [7, 8]]


@pytest.fixture(scope="module")
def model():
    return decided_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Return the folder of the exported model."""
    path = tmp_path_factory.mktemp("artifact") / "out"
    export_model(path, CFG, model[1])
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """Return a copy of the folder, to damage."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def run(words):
    """Run the command without a cache of compiled programs."""
    main([*map(str, words), *["--no-compile-cache"] * (words[0] == "generate")])


def call(capsys, *words):
    run(words)
    return capsys.readouterr().out


@pytest.fixture
def fails(capsys):
    """Run the command, which must end with code 2 and one line; return the line."""

    def failing(*words):
        with pytest.raises(SystemExit) as stop:
            run(words)
        out, err = capsys.readouterr()
        assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
        return err

    return failing


@pytest.mark.slow
def test_an_exported_model_gives_the_same_tokens(model, folder):
    _, weights, programs = load_artifact(folder)
    keys = jax.random.split(jax.random.key(3), 3)
    sampled = {"temperature": [0.9, 0.0, 1.0], "top_k": 40, "top_p": 0.9, "min_p": 0.01}
    never, soon = {"stop_ids": [306] * 150}, {"stop_ids": list(range(150))}
    for settings in (never, never | sampled | {"key": keys}, soon):
        want = generate(*model, PROMPTS, 12, **settings)
        got = generate(model[0], weights, PROMPTS, 12, **settings, programs=programs)
        assert (got.tokens, got.finish_reasons) == (want.tokens, want.finish_reasons)
        for ours, theirs in zip(got.logprobs, want.logprobs, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert set(want.finish_reasons) == {"stop"}
    assert programs.n_compilations() == 2
    want = generate(*model, PROMPTS[:1], 12).tokens  # another batch size, and fewer stop ids
    assert generate(model[0], weights, PROMPTS[:1], 12, programs=programs).tokens == want
    assert programs.n_compilations() == 4
    with pytest.raises(ValueError, match="samples with threefry2x32 keys, but this key is of rbg"):
        generate(
            model[0], weights, PROMPTS, 12, key=jax.random.key(1, impl="rbg"), programs=programs
        )
    with jax.default_prng_impl("rbg"):  # greedy, without a key
        out = generate(model[0], weights, PROMPTS[:1], 12, programs=programs)
    assert out.tokens == want
    with pytest.raises(ValueError, match="an exported model cannot slide"):
        generate(model[0], weights, [[1] * 31], 4, sliding_window=True, programs=programs)


@pytest.mark.slow
def test_other_weights_give_other_tokens_and_are_refused(model, copy, fails):
    _, weights, programs = load_artifact(copy)
    changed = {name: -x if "ff.layers.2" in name else x for name, x in weights.items()}
    got = generate(model[0], changed, PROMPTS, 12, programs=programs)
    assert got.tokens != generate(*model, PROMPTS, 12).tokens
    write_safetensors(copy / "new", {name: np.asarray(x) for name, x in changed.items()})
    (copy / "new").replace(copy / "model.safetensors")
    assert "is not the file that manifest.json lists" in fails("generate", "--model", copy, "a")


def test_files_of_a_killed_export_are_ignored(model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".model.safetensors.1").write_bytes(b"cut short")
    (out / "decode.tpu.jaxexport").write_bytes(b"of an earlier one")
    files = export_model(out, CFG, model[1], platforms=["cpu"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        name: size for name, size in files.items() if name != "manifest.json"
    }
    assert not (out / "decode.tpu.jaxexport").exists()
    load_artifact(out)


@pytest.mark.slow
def test_the_folder_has_the_files_of_the_manifest(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    programs = {f"{n}.{p}.jaxexport" for n in ("prefill", "decode") for p in PLATFORMS}
    assert manifest["files"].keys() == programs | {"model.safetensors"}
    assert manifest["tokens"] == {}
    for name, entry in manifest["files"].items():
        assert (folder / name).stat().st_size == entry["bytes"]
    for platform in PLATFORMS:
        data = bytearray((folder / f"prefill.{platform}.jaxexport").read_bytes())
        assert jax.export.deserialize(data).platforms == (platform,)


def test_the_arrays_of_the_programs_keep_their_names(folder):
    """Programs of earlier versions, and scripts without this package, use these names."""
    state = {"count", "tokens", "logprobs", "made", "done", "broken", "keys", "values"}
    request = {"lengths", "temperature", "top_k", "top_p", "min_p", "keys", "stop_ids"}
    for name, places in (("prefill", (2, 3)), ("decode", (2, 1))):
        data = bytearray((folder / f"{name}.cpu.jaxexport").read_bytes())
        exported = jax.export.deserialize(data)
        arguments, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        found = [set(arguments[place]) for place in places]
        assert found == [request, state]
        assert {leaf.shape[1] for leaf in arguments[places[1]]["keys"]} == {CFG.n_heads}


def test_only_programs_for_the_cpu_have_its_barriers(folder):
    def barriers(platform):
        data = bytearray((folder / f"decode.{platform}.jaxexport").read_bytes())
        return jax.export.deserialize(data).mlir_module().count("optimization_barrier")

    assert [barriers(platform) > 0 for platform in PLATFORMS] == [True, False, False]


@pytest.mark.slow
def test_a_script_runs_the_programs_without_this_package(model, folder):
    source = SCRIPT.read_text()
    assert len(source.splitlines()) <= 40
    blocked = "import sys\nfor name in ('obscura_jax', 'flax'): sys.modules[name] = None\n"
    words = [folder, 9, *PROMPTS[0]]
    done = processes.run(sys.executable, "-c", f"{blocked}{source}", *words)
    assert done.returncode == 0, done.stderr
    want = generate(*model, PROMPTS[:1], 9).tokens[0]
    assert [int(word) for word in done.stdout.split()] == want


@pytest.mark.slow
def test_an_exported_model_in_bfloat16_is_close_to_generate_in_bfloat16(model, tmp_path):
    export_model(tmp_path / "half", CFG, model[1], dtype="bfloat16", platforms=["cpu", "tpu"])
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    assert manifest["cache_dtypes"] == {"cpu": "float32", "tpu": "bfloat16"}
    _, weights, programs = load_artifact(tmp_path / "half")
    assert {str(leaf.dtype) for leaf in weights.values()} == {"bfloat16"}
    got = generate(model[0], weights, PROMPTS, 2, programs=programs)
    want = generate(*model, PROMPTS, 2, dtype="bfloat16")
    for ours, theirs in zip(got.logprobs, want.logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=0.3)  # 0.07 measured; logits are near 10


@pytest.mark.slow
def test_the_command_exports_and_runs_a_model(model, tmp_path, capsys, fails):
    save_model(tmp_path / "model", *(model[0].cfg, model[1]))
    printed = call(capsys, "export", tmp_path / "model", tmp_path / "out", "--platforms", "cpu")
    assert "prefill.cpu.jaxexport" in printed
    words = ["a b", "c", "--max-new-tokens", 5, "--temperature", 1, "--seed", 4]
    want = call(capsys, "generate", "--model", tmp_path / "model", *words)
    assert call(capsys, "generate", "--model", tmp_path / "out", *words) == want
    for option in (["--n-heads", 3], ["--dtype", "float32"], ["--sliding"], ["--mesh", "data=1"]):
        error = fails("generate", "--model", tmp_path / "out", "a", *option)
        assert f"is an exported model; leave out {option[0]}" in error
    out = tmp_path / "out"
    assert "platforms must be among cpu" in fails("export", "tiny", out, "--platforms", "metal")
    assert "is a file" in fails("export", tmp_path / "model", tmp_path / "out" / "manifest.json")
    assert "holds a model" in fails("export", "tiny", tmp_path / "model")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        export_model(tmp_path / "new", CFG, model[1], dtype="float16")


CONTROLS = {
    "repetition_penalty": ("--repetition-penalty", 1.5),
    "frequency_penalty": ("--frequency-penalty", 0.5),
    "presence_penalty": ("--presence-penalty", 0.5),
    "logit_bias": ("--bias", " the=2"),
    "banned_ids": ("--ban", " the"),
    "min_new_tokens": ("--min-new-tokens", 2),
    "top_logprobs": ("--top-logprobs", 2),
}


def test_controls_are_refused(model, folder, fails):
    """The programs of format 2 have none."""
    _, weights, programs = load_artifact(folder)
    values = {"logit_bias": {3: 2.0}, "banned_ids": [3]}
    for name, (option, value) in CONTROLS.items():
        message = f"an exported model has no {name}; leave it out, or load the model"
        given = {name: values.get(name, value)}
        with pytest.raises(ValueError, match=message):
            generate(model[0], weights, PROMPTS, 3, programs=programs, **given)
        error = fails("generate", "--model", folder, "a", "--json", option, value)
        assert f"is an exported model; leave out {option}" in error
    off = {"logit_bias": {}, "banned_ids": [], "repetition_penalty": None}
    assert generate(model[0], weights, PROMPTS, 3, programs=programs, **off).tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "obscura_jax artifact 9"}, "but this version reads 'obscura_jax artifact 2'"),
        (
            {"format": "obscura_jax artifact 1"},
            "has format 'obscura_jax artifact 1', but",
        ),
        (
            {"cache_dtypes": {"cuda": "float32", "tpu": "float32"}},
            "was exported for cuda, tpu, but this",
        ),
        ({"files": {}}, "is incomplete: prefill.cpu.jaxexport is missing"),
        ({"config": {"emb_dim": 3}}, "manifest.json is damaged"),
        ({"files": None}, "manifest.json is damaged"),
        ({"cache_dtypes": {"cpu": "floaty"}}, "manifest.json is damaged"),
        ({"cache_dtypes": ["cpu"]}, "manifest.json is damaged"),
    ],
)
def test_a_bad_manifest_is_refused(change, message, copy, fails):
    path = copy / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert message in fails("generate", "--model", copy, "a")


def test_damage_is_detected(copy, fails):
    program, weights = copy / "decode.cpu.jaxexport", copy / "model.safetensors"
    good = program.read_bytes()
    program.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert "its SHA-256 differs from manifest.json" in fails("generate", "--model", copy, "a")
    program.write_bytes(good)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    assert "is damaged" in fails("generate", "--model", copy, "a")
    weights.unlink()
    assert "model.safetensors is not a file" in fails("generate", "--model", copy, "a")
    (copy / "manifest.json").write_text("{")
    assert "is not JSON" in fails("generate", "--model", copy, "a")


def test_a_program_of_another_jax_is_refused(copy, fails, monkeypatch):
    def unreadable(data):
        raise ValueError("calling convention version 99")

    monkeypatch.setattr(jax.export, "deserialize", unreadable)
    assert f"was made by jax {jax.__version__}, and" in fails("generate", "--model", copy, "a")
