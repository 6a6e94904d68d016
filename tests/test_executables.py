"""Executables of an exported model give its tokens without compiling, only where they can run."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from obscura_jax import generate, save_model
from obscura_jax.export.artifact import load_artifact
from obscura_jax.export.build import Build, this_build
from obscura_jax.export.exporter import export_model
from tests.support import processes
from tests.support.exported import CFG, decided_model

pytestmark = pytest.mark.slow

PROMPT = [[1, 2, 3, 4, 5]]
FILES = {
    "prefill.cpu.1x16.executable",
    "prefill.cpu.1x29.executable",
    "decode.cpu.1x29.executable",
}
INTEL = """processor : 0
model name	: Xeon
flags		: fpu hypervisor sse4_2 avx512f ibrs amx_tile

processor : 1
flags		: fpu avx9
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve\n"


@pytest.fixture(scope="module")
def model():
    return decided_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Return the folder of the exported model with executables."""
    path = tmp_path_factory.mktemp("artifact") / "out"
    export_model(path, CFG, model[1], platforms=["cpu"], compile_for=["cpu"])
    return path


@pytest.fixture
def copy(folder, tmp_path):
    """Return a copy of the folder, to change."""
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def compiled():
    """Return a growing list of the names of the programs that JAX compiles."""
    names = []

    def listen(event, _, **details):
        if event.endswith("backend_compile_duration"):
            names.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    jax.monitoring.unregister_event_duration_listener(listen)


def change(folder, **fields):
    """Change fields of the executables' entry in the manifest."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["executables"]["cpu"] |= fields
    path.write_text(json.dumps(manifest))


def remove_executables(folder):
    for name in FILES:
        (folder / name).unlink()


def test_executables_give_the_tokens_of_the_exported_model_without_compiling(
    model, folder, copy, compiled
):
    remove_executables(copy)
    _, weights, plain = load_artifact(copy)
    sampled = {"temperature": 0.9, "top_k": 40, "top_p": 0.9, "key": jax.random.key(3)}
    cases = [
        {"max_new_tokens": 20},
        {"max_new_tokens": 20, **sampled},
        {"max_new_tokens": 4, "stop_ids": [306]},  # without an executable, only 16 slots
    ]
    wanted = [generate(model[0], weights, PROMPT, **case, programs=plain) for case in cases]
    assert any("call" in name for name in compiled)
    compiled.clear()
    _, weights, programs = load_artifact(folder)
    for case, want in zip(cases, wanted, strict=True):
        got = generate(model[0], weights, PROMPT, **case, programs=programs)
        assert got.tokens == want.tokens
        assert got.stats.n_compilations == 0
        np.testing.assert_allclose(got.logprobs, want.logprobs, atol=1e-5)  # 0 measured
    assert compiled == []
    assert programs.n_compilations() == 0
    assert generate(*model, PROMPT, 20).tokens == wanted[0].tokens
    changed = {name: -x if "ff.layers.2" in name else x for name, x in weights.items()}
    got = generate(model[0], changed, PROMPT, 20, programs=programs)
    assert got.tokens != wanted[0].tokens
    assert programs.n_compilations() == 0


def test_every_width_has_an_executable(model, folder):
    _, weights, programs = load_artifact(folder)
    longer = [list(range(1, 19))]
    got = generate(model[0], weights, longer, 11, programs=programs)
    assert got.tokens == generate(*model, longer, 11).tokens
    assert programs.n_compilations() == 0


def test_another_type_of_weights_is_refused(model, folder):
    _, weights, programs = load_artifact(folder)
    for prompts in (PROMPT, PROMPT * 2):  # as an executable, and compiled
        with pytest.raises(ValueError, match="model in float32 cannot compute in bfloat16; leave"):
            generate(model[0], weights, prompts, 4, dtype="bfloat16", programs=programs)


def test_other_sizes_fall_back_to_the_exported_program(model, folder):
    _, weights, programs = load_artifact(folder)
    rows = [*PROMPT, [7, 8], [300]]
    got = generate(model[0], weights, rows, 9, programs=programs)
    assert got.tokens == generate(*model, rows, 9).tokens
    assert programs.n_compilations() == 2
    many = {"stop_ids": [306] * 17}  # more than the executables have room for
    got = generate(model[0], weights, PROMPT, 9, **many, programs=programs)
    assert got.tokens == generate(*model, PROMPT, 9, **many).tokens
    assert programs.n_compilations() == 4
    generate(model[0], weights, PROMPT, 9, programs=programs)
    assert programs.n_compilations() == 4


def test_programs_from_the_compile_cache_do_not_become_executables(model, tmp_path):
    """A process that has compiled the same programs before exports executables that run."""
    script = (
        "import sys, jax\n"
        "from obscura_jax.compile_cache import enable_compilation_cache\n"
        "from obscura_jax.cli.main import main\n"
        "enable_compilation_cache()\n"
        "for folder in sys.argv[2:]:\n"
        "    main(['export', sys.argv[1], folder, '--platforms=cpu', '--compile=cpu'])\n"
    )
    save_model(tmp_path / "model", CFG, model[1])
    folders = [tmp_path / "first", tmp_path / "second"]
    cache = {"OBSCURA_CACHE_DIR": str(tmp_path / "cache")}
    done = processes.run(sys.executable, "-c", script, tmp_path / "model", *folders, env=cache)
    assert done.returncode == 0, done.stderr
    want = generate(*model, PROMPT, 9).tokens
    for folder in folders:
        _, weights, programs = load_artifact(folder)
        assert generate(model[0], weights, PROMPT, 9, programs=programs).tokens == want
        assert programs.n_compilations() == 0


def test_the_manifest_lists_executables_and_keeps_its_format(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == "obscura_jax artifact 2"  # earlier versions ignore executables
    entry = manifest["executables"]["cpu"]
    assert entry["programs"].keys() == FILES
    assert manifest["files"].keys() > FILES
    assert Build.from_dict(entry) == this_build()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"jax": "0.1"}, f"for jax 0.1, jaxlib {this_build().jaxlib} on "),
        ({"jaxlib": "0.1"}, f"for jax {jax.__version__}, jaxlib 0.1 on "),
        (
            {"instructions": ["avx9", *this_build().instructions]},
            f"but this is jax {jax.__version__}, jaxlib {this_build().jaxlib} on "
            f"{this_build().processor} without avx9; export again with --compile cpu, or remove ",
        ),
    ],
)
def test_another_version_or_processor_is_refused(fields, message, model, copy, fails):
    change(copy, **fields)
    assert message in fails("generate", "--model", copy, "a")
    remove_executables(copy)  # as the message proposes
    _, weights, programs = load_artifact(copy)
    got = generate(model[0], weights, PROMPT, 9, programs=programs)
    assert got.tokens == generate(*model, PROMPT, 9).tokens


def test_executables_for_another_platform_are_ignored(copy):
    change(copy, platform="cuda", jax="0.1")
    load_artifact(copy)


def test_a_damaged_executable_is_not_loaded(model, copy, fails, monkeypatch):
    def load(*_, **__):
        raise AssertionError("a damaged file was loaded")

    path = copy / "decode.cpu.1x29.executable"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    monkeypatch.setattr(jax.experimental.serialize_executable, "deserialize_and_load", load)
    assert "its SHA-256 differs from manifest.json" in fails("generate", "--model", copy, "a")
    path.write_bytes(data)
    _, weights, programs = load_artifact(copy)
    with pytest.raises(ValueError, match="cannot be loaded; export again with --compile, or"):
        generate(model[0], weights, PROMPT, 9, programs=programs)


@pytest.mark.parametrize(
    "fields", [{"programs": None}, {"programs": {"decode.cpu.1x29.executable": 3}}, {"jax": 3}]
)
def test_a_damaged_entry_is_refused(fields, copy, fails):
    change(copy, **fields)
    error = fails("generate", "--model", copy, "a")
    assert "manifest.json is damaged" in error or "for jax 3," in error


def test_a_new_export_removes_executables(model, copy):
    export_model(copy, CFG, model[1], platforms=["cpu"], overwrite=True)
    assert not list(copy.glob("*.executable"))
    assert "executables" not in json.loads((copy / "manifest.json").read_text())


def test_the_command_adds_executables(model, tmp_path, fails):
    save_model(tmp_path / "model", CFG, model[1])
    source, out = tmp_path / "model", tmp_path / "out"
    done = processes.run(
        *processes.OBSCURA, "export", source, out, "--platforms", "cpu", "--compile", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in FILES)
    words = ["1 2 3", "--ids", "--max-new-tokens", 5, "--json", "--no-compile-cache"]
    found = {}
    for name in (source, out):
        done = processes.run(*processes.OBSCURA, "generate", "--model", name, *words)
        assert (done.returncode, done.stderr) == (0, "")
        found[name] = json.loads(done.stdout)
    assert found[out]["tokens"] == found[source]["tokens"]
    assert (found[source]["compiled"], found[out]["compiled"]) == (2, 0)
    new = tmp_path / "new"
    assert "h100, h200, b200, l4; got 'v5e'" in fails("export", source, new, "--compile", "cpu,v5e")
    error = fails("export", source, new, "--compile", "cpu", "--platforms", "tpu")
    assert "need programs for cpu, but the platforms are tpu; add cpu" in error


def test_a_processor_needs_the_instructions_of_a_build(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(INTEL)
    intel = this_build(cpuinfo)
    assert intel.processor == "Xeon"
    assert {"amx_tile", "avx512f", "sse4_2"} < set(intel.instructions)  # and the architecture
    assert not {"avx9", "hypervisor", "ibrs"} & set(intel.instructions)
    more = replace(intel, processor="newer", instructions=("avx9", *intel.instructions))
    assert intel.difference(intel) is None
    assert intel.difference(more) is None
    assert more.difference(intel).endswith("on Xeon without avx9")
    cpuinfo.write_text(ARM)
    assert {"asimd", "fp", "sve"} < set(this_build(cpuinfo).instructions)
    elsewhere = this_build(tmp_path / "none")
    assert elsewhere.instructions == ()
    assert "without" in intel.difference(elsewhere)


def test_a_system_that_does_not_describe_its_processor_compiles_nothing(
    model, tmp_path, monkeypatch
):
    nothing = this_build(Path(tmp_path, "none"))
    monkeypatch.setattr("obscura_jax.export.executables.this_build", lambda: nothing)
    with pytest.raises(ValueError, match="executables need /proc/cpuinfo"):
        export_model(tmp_path / "out", CFG, model[1], platforms=["cpu"], compile_for=["cpu"])
