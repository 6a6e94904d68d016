"""`obscura bench` and its tool: the figures are of what they say, and all are there."""

import json
import sys
from pathlib import Path

import jax
import pytest

from obscura_jax import GPTConfig, GPTModel, save_model
from obscura_jax.bench.generation import generation_workloads, time_generation
from obscura_jax.bench.processes import time_cold_start
from obscura_jax.cli.main import main
from tests.support import processes

CFG = GPTConfig(
    vocab_size=307,
    context_length=32,
    emb_dim=12,
    n_heads=3,
    n_layers=1,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)
NAMES = ["prefill, 16 tokens", "decode, 1 row", "decode, 8 rows", "decode, 1 row, full cache"]
NAMES += ["training, 4 x 32"]


@pytest.fixture
def folder(tmp_path):
    params = GPTModel(CFG).init(jax.random.key(0), [[0]])["params"]
    save_model(tmp_path / "model", CFG, params)
    return str(tmp_path / "model")


@pytest.mark.slow
def test_json_has_every_figure(folder, capsys):
    main(["bench", "--model", folder, "--repeats", "3", "--json"])
    out = json.loads(capsys.readouterr().out)
    assert out["model"] == folder
    assert {"device", "threads", "python", "jax", "flax", "obscura_jax"} <= out.keys()
    figures = out["figures"]
    want = [(name, dtype) for name in NAMES for dtype in ("float32", "bfloat16")]
    assert [(figure["name"], figure["system"]) for figure in figures] == want
    for figure in figures:
        assert len(figure["values"]) == 3
        assert figure["median"] == sorted(figure["values"])[1] > 0
        assert figure["compile_seconds"] > 0  # the first call compiles, and it alone
        assert figure["unit"] == ("ms/step" if "decode" in figure["name"] else "tokens/s")


@pytest.mark.slow
def test_the_table_has_a_line_per_figure(folder, capsys):
    main(["bench", "--model", folder, "--repeats", "1", "--dtype", "float32"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert f"jax {jax.__version__}" in first
    assert [line[:28].strip() for line in lines] == NAMES


def test_values_are_computed_from_the_right_times():
    """A system that takes 1 s until its first tokens, and 0.01 s for each step after."""
    calls = []

    def system(prompts, new_tokens):
        calls.append((len(prompts), len(prompts[0]), new_tokens))
        return 1.0 + 5 * (len(calls) == 1), 0.01 * (new_tokens - 1), []

    prefill, *_, full = generation_workloads(CFG)
    (figure,) = time_generation(prefill, {"float32": system}, 2)
    assert (figure.values, figure.compile_seconds) == ([16.0, 16.0], 5.0)
    assert calls == [(1, 16, 1)] * 3
    (figure,) = time_generation(full, {"float32": system}, 1)
    assert figure.values == [pytest.approx(10)]
    assert calls[-1][1] + calls[-1][2] == CFG.context_length


def test_a_processs_time_and_memory_are_measured():
    hold = "import time; x = bytearray(100 * 2**20); time.sleep(0.3)"
    (figure,) = time_cold_start({"sleeper": [sys.executable, "-c", hold]}, 1)
    assert figure.median > 0.3
    assert 100 < figure.mebibytes < 200  # and not this process's own
    with pytest.raises(ValueError, match="No such model"):
        time_cold_start({"broken": [sys.executable, "-c", "raise SystemExit('No such model')"]}, 1)


@pytest.mark.slow
def test_the_tool_runs_without_peers(folder, tmp_path):
    tool = Path(__file__).parents[1] / "tools" / "bench_generate.py"
    words = ["--model", folder, "--repeats", "1", "--json", "--dtype", "float32"]
    done = processes.run(sys.executable, tool, *words, "--save", tmp_path)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    ours = [figure["name"] for figure in out["figures"] if figure["system"] == "float32"]
    assert ours == NAMES[:4]
    saved = json.loads((tmp_path / "generation.json").read_text())
    assert [row["name"] for row in saved["rows"] if row["system"] == "float32"] == ours
    ratios = {row["system"]: row["ratio"] for row in saved["rows"] if "ratio" in row}
    assert ratios.keys() == {ratio["peer"] for ratio in out["ratios"]}


@pytest.mark.slow
def test_the_training_tool_compares_with_torch(tmp_path):
    tool = Path(__file__).parents[1] / "tools" / "bench_train.py"
    words = ["--preset", "tiny", "--batch-size", "1", "--length", "8", "--repeats", "1", "--json"]
    words += ["--dtype", "float32", "--eager", "--save", tmp_path]
    done = processes.run(sys.executable, tool, *words)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert [figure["system"] for figure in out["figures"]] == ["float32", "torch eager float32"]
    assert all(figure["mebibytes"] > 100 for figure in out["figures"])
    (ratio,) = out["ratios"]
    ours, theirs = (figure["values"][0] for figure in out["figures"])
    assert ratio["ratio"] == pytest.approx(ours / theirs)
    saved = json.loads((tmp_path / "training.json").read_text())
    assert saved["rows"][1]["ratio"] == pytest.approx(ratio["ratio"], 1e-3)
    assert [row["tokens"] for row in saved["rows"]] == [8, 8]
