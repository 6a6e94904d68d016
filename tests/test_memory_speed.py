"""The warning of `obscura bench`: a decode step reads its weights below half of memory's speed."""

import json
from dataclasses import replace

import pytest

from obscura_jax import GPTConfig
from obscura_jax.bench import memory_speed, suite
from obscura_jax.bench.measurements import BenchReport, Measurement
from obscura_jax.bench.memory_speed import (
    MIN_WEIGHT_BYTES,
    WeightReading,
    decode_weight_bytes,
    read_speed,
    weight_readings,
)
from obscura_jax.config import PRESETS
from obscura_jax.nn.parameters import init_shapes, parameter_bytes

CFG = GPTConfig(
    vocab_size=307,
    context_length=32,
    emb_dim=12,
    n_heads=3,
    n_layers=2,
    drop_rate=0.0,
    qkv_bias=True,
    tie_weights=True,
)
GPT2_BYTES = 4 * (124_439_808 - 1024 * 768)  # GPT-2's parameters without its position embedding


def figure(milliseconds, name="decode, 1 row", system="float32"):
    return Measurement(name, system, "ms/step", milliseconds, 0.0)


def test_a_step_reads_all_but_the_tables_in_which_it_looks_up_rows():
    assert decode_weight_bytes(PRESETS["gpt2"], "float32") == GPT2_BYTES
    assert decode_weight_bytes(PRESETS["gpt2"], "bfloat16") == GPT2_BYTES // 2
    untied = replace(CFG, tie_weights=False)
    tables = 4 * 12 * (32 + 307)
    assert decode_weight_bytes(untied, "float32") == parameter_bytes(init_shapes(untied)) - tables
    assert decode_weight_bytes(untied, "float32") == decode_weight_bytes(CFG, "float32")


def test_the_speed_is_that_of_the_best_step_of_one_row():
    """Steps of 20 ms read 494.6 MB of float32 at 24.7 GB/s."""
    others = [figure([1.0], "decode, 8 rows"), figure([1.0], "decode, 1 row, full cache")]
    figures = [*others, figure([90.0, 20.0, 30.0]), figure([40.0], system="bfloat16")]
    found = weight_readings(PRESETS["gpt2"], figures, 31e9)
    assert [reading.dtype for reading in found] == ["float32", "bfloat16"]
    assert [reading.machine_speed for reading in found] == [31e9, 31e9]
    assert [reading.speed for reading in found] == pytest.approx(
        [GPT2_BYTES / 0.020, GPT2_BYTES / 2 / 0.040], rel=1e-12
    )


def test_a_model_of_few_weights_is_not_judged():
    """A step of the shipped model reads 10 MB of float32."""
    assert not weight_readings(PRESETS["tiny"], [figure([1000.0])], 31e9)
    assert weight_readings(PRESETS["gpt2"], [figure([1000.0])], 31e9)
    assert 9e6 < decode_weight_bytes(PRESETS["tiny"], "float32") < 11e6 < MIN_WEIGHT_BYTES


@pytest.mark.parametrize(("speed", "slow"), [(15.4e9, True), (15.5e9, False), (40e9, False)])
def test_slow_is_below_half_of_what_the_machine_gives(speed, slow):
    reading = WeightReading("bfloat16", speed, 31e9)
    assert reading.is_slow is slow
    assert reading.to_dict()["slow"] is slow


@pytest.mark.parametrize(
    ("dtype", "platform", "advice"),
    [
        ("bfloat16", "cpu", "another version of JAX, or float32, may be faster"),
        ("float32", "cpu", "another version of JAX may be faster"),
        ("bfloat16", "gpu", "steps of more rows use the memory better"),
    ],
)
def test_the_warning_states_both_speeds_and_what_may_help(dtype, platform, advice):
    assert WeightReading(dtype, 7.04e9, 31.2e9).warning(platform) == (
        f"decode, 1 row in {dtype} reads its weights at 7.0 GB/s of the 31.2 GB/s that this "
        f"machine's memory gives; {advice}"
    )


def test_the_machine_is_measured_by_the_bytes_of_a_sum(monkeypatch):
    """A clock that advances 3, 1, 2, ... seconds per sum gives the bytes of the array in 1 s."""
    monkeypatch.setattr(memory_speed, "_SHAPE", (6, 10))
    monkeypatch.setattr(memory_speed, "_SUMS", 3)
    clock = iter([0.0, 3.0, 3.0, 4.0, 4.0, 6.0])
    monkeypatch.setattr(memory_speed.time, "perf_counter", lambda: next(clock))
    assert read_speed() == 4 * 6 * 10


@pytest.mark.parametrize("speed", [31e9, 1.0])
@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_warns_and_its_json_has_the_figures(monkeypatch, capsys, speed, as_json):
    """Steps of 20 ms read 0.5 GB/s: less than half of 31 GB/s, and more than half of 1 B/s."""
    monkeypatch.setattr(memory_speed, "MIN_WEIGHT_BYTES", 1)
    monkeypatch.setattr(suite, "MIN_WEIGHT_BYTES", 1)
    monkeypatch.setattr(suite, "read_speed", lambda: speed)
    monkeypatch.setattr(suite, "_time_training", lambda *_: [])
    monkeypatch.setattr(
        suite, "time_generation", lambda workload, *_: [figure([20.0], workload.name)]
    )
    report = BenchReport(as_json)
    suite.bench_model("tiny", report, dtype="float32", cold=False)
    out = capsys.readouterr().out
    if as_json:
        read = decode_weight_bytes(PRESETS["tiny"], "float32") / 0.020 / 1e9
        memory = json.loads(out)["memory"]
        assert memory["gigabytes_per_second"] == speed / 1e9
        (reading,) = memory["decode"]
        assert reading.pop("gigabytes_per_second") == pytest.approx(read, rel=1e-12)
        assert reading == {"name": "decode, 1 row", "system": "float32", "slow": speed > 1}
    else:
        assert ("another version of JAX may be faster" in out) is (speed > 1)
