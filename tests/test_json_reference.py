"""The page on JSON has exactly the keys of the objects that the commands print."""

import json

import pytest

from obscura_jax import TrainSettings, train
from obscura_jax.bench.measurements import BenchReport, Measurement
from obscura_jax.cli.main import main
from obscura_jax.text import sample_text
from tests.support.pages import documented_keys, text_of


@pytest.mark.slow
def test_generate(capsys):
    options = ["--max-new-tokens", "1", "--json", "--top-logprobs", "2", "--no-compile-cache"]
    main(["generate", "The", *options])
    (line,) = capsys.readouterr().out.splitlines()
    assert set(json.loads(line)) == documented_keys("obscura generate --json")


@pytest.mark.slow
def test_metrics(tmp_path):
    (tmp_path / "book.txt").write_text(sample_text(), encoding="utf-8")
    settings = TrainSettings(
        text=[tmp_path / "book.txt"], steps=2, vocab_size=257, context_length=8, emb_dim=12
    )
    rows = train(settings, folder=tmp_path / "run").metrics
    assert {key for row in rows for key in row} == documented_keys("metrics.jsonl")


def test_bench(capsys):
    report = BenchReport(True)
    report.add(Measurement("decode", "ours", "ms", [1.0], 0.5))
    report.end("tiny", memory={"gigabytes_per_second": 1.0, "decode": []})
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == documented_keys("obscura bench --json")
    page = text_of("docs/reference/json.md")
    assert all(f"`{key}`" in page for key in printed["figures"][0])


def test_a_missing_key_is_detected():
    keys = documented_keys("obscura bench --json")
    assert "device" in keys
    assert not keys & {"tokens", "values"}  # of another section, and of the second column
