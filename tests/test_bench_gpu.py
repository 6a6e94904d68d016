"""tools/bench_gpu.py: what it prints, on a tiny model, and when it refuses to run."""

import json
import sys
from pathlib import Path

import pytest

from tests.support import processes

ROOT = Path(__file__).parents[1]
NAMES = ["prefill, 16 tokens", "decode, 1 row", "decode, 8 rows", "decode, 64 rows"]
NAMES += ["training, 2 x 32"]


def run_tool(*words, **env):
    return processes.run(sys.executable, ROOT / "tools" / "bench_gpu.py", *words, env=env)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("platform", "message"),
    [
        ("cpu", "JAX finds no GPU; install jax[cuda12], or use --tiny to try the tool"),
        ("cuda", "JAX finds no device; unset JAX_PLATFORMS"),
    ],
)
def test_without_a_gpu_it_prints_one_line(platform, message):
    done = run_tool("--no-torch", JAX_PLATFORMS=platform)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1:] == [f"bench_gpu.py: {message}"]
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_json_has_every_figure_of_every_system():
    done = run_tool(
        *["--tiny", "--eager", "--dtype", "float32", "--repeats", "3", "--batch-size", "2"]
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert (out["model"], out["dtype"]) == ("tiny", "float32")
    assert all(out[name] for name in ("device", "threads", "jax", "torch", "transformers"))
    systems = ("float32", "torch eager float32")
    figures = {(figure["name"], figure["system"]): figure for figure in out["figures"]}
    assert list(figures) == [(name, system) for name in NAMES for system in systems]
    for (name, _), figure in figures.items():
        assert len(figure["values"]) == 3
        assert figure["median"] == sorted(figure["values"])[1] > 0
        assert figure["unit"] == ("ms/step" if "decode" in name else "tokens/s")
    assert [ratio["name"] for ratio in out["ratios"]] == NAMES
    for ratio in out["ratios"]:
        ours, peer = (figures[ratio["name"], system]["values"] for system in systems)
        faster = sorted(
            b / a if "decode" in ratio["name"] else a / b for a, b in zip(ours, peer, strict=True)
        )
        assert ratio["ratio"] == faster[1]
    *_, head, a, b, c, d, e = done.stderr.splitlines()
    assert head.split() == ["float32", "torch", "eager", "float32"]
    assert [line[:20].strip() for line in (a, b, c, d, e)] == NAMES
    assert all(line.endswith("x") for line in (a, b, c, d, e))


@pytest.mark.slow
def test_it_runs_without_pytorch():
    words = ["--tiny", "--no-torch", "--dtype", "float32", "--repeats", "1", "--batch-size", "2"]
    done = run_tool(*words)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert [figure["name"] for figure in out["figures"]] == NAMES
    assert (out["ratios"], out["torch"], out["transformers"]) == ([], None, None)


@pytest.mark.slow
@pytest.mark.parametrize(("second", "refused"), [([[5], [6], [9]], False), ([[5], [7], [9]], True)])
def test_systems_that_run_different_models_are_refused(second, refused):
    """More than half of the rows have to start with the same token."""
    tokens = {"ours": [[5, 1], [6, 2], [8, 3]], "peer": second}
    code = f"from tools.bench_gpu import check_same_model; check_same_model({tokens})"
    done = processes.run(sys.executable, "-c", code, cwd=ROOT)
    assert (done.returncode != 0) is refused, done.stderr
    assert ("ValueError: peer does not run the same model: 1 of 3" in done.stderr) is refused
