"""Executables for GPUs: refused elsewhere in one line, and compiled without a GPU.

Tests that compile need the extra `cuda-compile`, as in CI. No test loads one: that needs a GPU.
"""

import hashlib
import json
import re
import shutil
import sys
from importlib import metadata
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import serialize_executable

from obscura_jax import generate
from obscura_jax.cli.main import main
from obscura_jax.decoding.cache import cache_layout
from obscura_jax.export import executables
from obscura_jax.export.artifact import load_artifact
from obscura_jax.export.build import build_for
from obscura_jax.export.executables import TARGETS, lower_for, target_device
from obscura_jax.export.exporter import export_model
from obscura_jax.export.file_format import Sizes, program_arguments
from obscura_jax.nn.target import Target, tracing_for
from obscura_jax.safetensors_files import read_safetensors
from obscura_jax.scale.cuda_commands import commands_per_token, compile_with_plan
from obscura_jax.scale.nvidia import GPUS
from tests.support.exported import CFG, decided_model
from tests.test_gpu_topology import compiles

H100, A100 = GPUS["h100"].name, GPUS["a100"].name
SIZES = Sizes(1, 0, 29, 29, 16)
PROMPT = [[1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def model():
    return decided_model()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """Return the folder of the exported model, for the CPU and CUDA."""
    path = tmp_path_factory.mktemp("artifact") / "out"
    export_model(path, CFG, model[1], platforms=["cpu", "cuda"])
    return path


@pytest.fixture
def folder(exported, tmp_path):
    """Return a copy of the folder, to change."""
    shutil.copytree(exported, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def on_gpu(monkeypatch):
    """Let this process seem to have a GPU of some kind, and a version of a CUDA plugin."""

    def pretend(kind, plugin="jax-cuda12-plugin", version="0.10.2"):
        device = SimpleNamespace(platform="gpu", device_kind=kind)

        def version_of(name):
            if name != plugin:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, "version", version_of)
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(jax, "devices", lambda: [device])
        return device

    return pretend


def add(folder, target, build, data=b"no machine code"):
    """Add an executable for a GPU, as if `build` had compiled it; return its path."""
    path = folder / f"decode.{target}.1x29.executable"
    path.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name] = {"sha256": hashlib.sha256(data).hexdigest()}
    programs = {path.name: ["decode", *SIZES]}
    entry = {"platform": "cuda", **build.to_dict(), "programs": programs}
    manifest.setdefault("executables", {})[target] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.mark.slow
def test_a_gpu_gets_the_executable_of_its_kind(folder, on_gpu, monkeypatch):
    def load(data, *_, execution_devices):
        return lambda: (data, execution_devices)

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", load)
    codes = {A100: b"of the A100", H100: b"of the H100"}
    for target, kind in [("a100", A100), ("h100", H100)]:
        add(folder, target, build_for(on_gpu(kind)), codes[kind])
    for kind in (H100, A100):
        device = on_gpu(kind)
        _, _, programs = load_artifact(folder)
        decode = programs.jitted[1]
        assert decode(SIZES) == (codes[kind], [device])


@pytest.mark.parametrize(
    ("here", "difference", "advice"),
    [
        ({"kind": A100}, f"on {A100}", "export again with --compile a100, or remove"),
        ({"kind": "NVIDIA H100 PCIe"}, "on NVIDIA H100 PCIe", "PCIe; remove"),
        (
            {"kind": H100, "version": "0.10.1"},
            f"jax-cuda12-plugin 0.10.1 on {H100}",
            "export again with --compile h100, or remove",
        ),
        (
            {"kind": H100, "plugin": "jax-cuda13-plugin"},
            f"jax-cuda13-plugin 0.10.2 on {H100}",
            "export again with --compile h100, or remove",
        ),
        ({"kind": H100, "plugin": "mine"}, "unknown plugin", "with --compile h100, or remove"),
    ],
)
def test_another_gpu_or_plugin_is_refused(folder, on_gpu, fails, here, difference, advice):
    path = add(folder, "h100", build_for(on_gpu(H100)))
    load_artifact(folder)
    on_gpu(**here)
    error = fails("generate", "--model", folder, "a")
    assert f", jax-cuda12-plugin 0.10.2 on {H100}, but this is jax {jax.__version__}" in error
    assert difference in error.split("but this is")[1]
    assert f"{advice} {folder / '*.h100.executable'}\n" in error
    path.unlink()  # as the message proposes
    load_artifact(folder)


def test_executables_that_all_are_for_other_gpus_are_named(folder, on_gpu, fails):
    for target in ("h100", "h200"):
        add(folder, target, build_for(on_gpu(GPUS[target].name)))
    on_gpu(A100)
    error = fails("generate", "--model", folder, "a")
    assert f"on {H100}, but this is" in error
    assert f"{folder / '*.h100.executable'} and {folder / '*.h200.executable'}\n" in error


def test_a_damaged_executable_is_not_loaded(folder, on_gpu, fails, monkeypatch):
    def load(*_, **__):
        raise AssertionError("a damaged file was loaded")

    monkeypatch.setattr(serialize_executable, "deserialize_and_load", load)
    path = add(folder, "h100", build_for(on_gpu(H100)))
    path.write_bytes(path.read_bytes() + b"!")
    assert "its SHA-256 differs from manifest.json" in fails("generate", "--model", folder, "a")


@pytest.mark.slow
def test_a_cpu_ignores_executables_for_gpus(model, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metadata, "version", lambda _: "0.1")
        gpu = SimpleNamespace(platform="gpu", device_kind=H100)
        add(folder, "h100", build_for(gpu))
    _, weights, programs = load_artifact(folder)
    got = generate(model[0], weights, PROMPT, 9, programs=programs)
    assert got.tokens == generate(*model, PROMPT, 9).tokens


def test_every_kind_of_gpu_is_a_target(capsys):
    assert {"cpu": "cpu", **dict.fromkeys(GPUS, "cuda")} == TARGETS
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert set(words) > TARGETS.keys()
    assert "v5e" not in words


def test_what_cannot_be_compiled_fails_in_one_line_before_anything_is_written(
    tmp_path, monkeypatch, fails
):
    out = tmp_path / "out"
    error = fails("export", "tiny", out, "--compile", "v5e")
    assert "executables are for cpu, a100, h100, h200, b200, l4; got 'v5e'" in error
    error = fails("export", "tiny", out, "--compile", "h100", "--platforms", "cpu")
    assert "executables for h100 need programs for cuda, but the platforms are cpu; add" in error
    monkeypatch.setitem(sys.modules, "jax_cuda12_plugin", None)
    assert "'.[cuda-compile]'" in fails("export", "tiny", out, "--compile", "h100")
    assert not out.exists()


@compiles
def test_executables_for_several_gpus_are_exported(model, tmp_path):
    export_model(
        tmp_path, CFG, model[1], platforms=["cpu", "cuda"], compile_for=["cpu", "h100", "l4"]
    )
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["executables"].keys() == {"cpu", "h100", "l4"}
    plugin = f"jax-cuda12-plugin {metadata.version('jax-cuda12-plugin')}"
    for target, code, other in [("h100", b"sm_90a", b"sm_89"), ("l4", b"sm_89", b"sm_90a")]:
        entry = manifest["executables"][target]
        assert entry["platform"] == "cuda"
        assert (entry["processor"], entry["plugin"]) == (GPUS[target].name, plugin)
        assert entry["programs"].keys() == {
            f"prefill.{target}.1x16.executable",
            f"prefill.{target}.1x29.executable",
            f"decode.{target}.1x29.executable",
        }
        for name in entry["programs"]:
            data = (tmp_path / name).read_bytes()
            assert code in data
            assert other not in data
    _, weights, programs = load_artifact(tmp_path)  # on this CPU
    got = generate(model[0], weights, PROMPT, 9, programs=programs)
    assert got.tokens == generate(*model, PROMPT, 9).tokens
    assert programs.n_compilations() == 0


@compiles
def test_no_token_of_a_compiled_loop_returns_to_the_host(exported, monkeypatch):
    def host_returns():
        data = (exported / "decode.cuda.jaxexport").read_bytes()
        program = jax.export.deserialize(bytearray(data))
        arguments = program_arguments("decode", weights, cache_layout(CFG, jnp.float32), SIZES)
        with tracing_for(Target("cuda", allow_layouts=False)):
            lowered = lower_for(target_device("h100"), "decode", program, arguments)
            return commands_per_token(compile_with_plan(lowered)[1]).most.host_returns

    weights = read_safetensors(exported / "model.safetensors")
    assert host_returns() == 0
    monkeypatch.setattr(executables, "decode_options", lambda _: {})
    assert host_returns() == 1
