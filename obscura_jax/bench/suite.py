"""The measurements of `obscura bench`: generation, training and a cold start of one model."""

from collections.abc import Sequence
from typing import Any

from obscura_jax.atomic_files import temporary_folder
from obscura_jax.bench.generation import generate_functions, generation_workloads, time_generation
from obscura_jax.bench.measurements import BenchReport, Measurement
from obscura_jax.bench.memory_speed import (
    MIN_WEIGHT_BYTES,
    decode_weight_bytes,
    read_speed,
    weight_readings,
)
from obscura_jax.bench.processes import can_cold_start, cold_start_command, time_cold_start
from obscura_jax.bench.training import TimedStep, time_training, training_step
from obscura_jax.config import GPTConfig


def bench_model(
    source: str,
    report: BenchReport,
    *,
    n_heads: int | None = None,
    dtype: str | None = None,
    repeats: int = 5,
    cold: bool = True,
) -> None:
    """Time prefill, decoding, training steps and a cold process, and add each to `report`.

    The report warns if decoding one row reads at least 50 MB of weights per step, but at less than
    half of the speed at which this machine reads memory.

    Args:
        source: the model, as in `load_model`.
        report: receives the measurements.
        n_heads: the number of attention heads, if the model does not state it.
        dtype: "float32" or "bfloat16"; by default both, in turn.
        repeats: how often each measurement is repeated.
        cold: whether to time the start of a process too.
    """
    import jax

    from obscura_jax.interop.checkpoint import load_model, save_model

    model, params = load_model(source, n_heads=n_heads)
    functions = generate_functions(model, params, dtype)
    largest = max(decode_weight_bytes(model.cfg, name) for name in functions)
    speed = read_speed() if largest >= MIN_WEIGHT_BYTES else None
    for workload in generation_workloads(model.cfg):
        report.add(*time_generation(workload, functions, repeats))
    memory = None if speed is None else _read_memory(model.cfg, report, speed)
    report.add(*_time_training(model.cfg, list(functions), repeats))
    if cold and can_cold_start(model.cfg):
        with temporary_folder() as folder:
            save_model(f"{folder}/model", model.cfg, jax.device_get(params))
            command = cold_start_command(f"{folder}/model")
            report.add(*time_cold_start({"float32": command}, repeats))
    report.end(source, memory=memory)


def _read_memory(cfg: GPTConfig, report: BenchReport, speed: float) -> dict[str, Any]:
    """Warn of slow reading in `report`, and return the figures for its JSON object.

    Args:
        cfg: the model.
        report: contains the measurements of decoding.
        speed: bytes per second that the machine reads.
    """
    import jax

    readings = weight_readings(cfg, report.measurements, speed)
    for reading in readings:
        if reading.is_slow:
            report.warn(reading.warning(jax.default_backend()))
    decode = [reading.to_dict() for reading in readings]
    return {"gigabytes_per_second": speed / 1e9, "decode": decode}


def _time_training(cfg: GPTConfig, dtypes: Sequence[str], repeats: int) -> list[Measurement]:
    from obscura_jax.training.options import StepOptions

    rows, length = 4, min(256, cfg.context_length)

    def without_memory(dtype: str) -> TimedStep:
        step = training_step(cfg, rows, length, StepOptions(compute_dtype=dtype))
        return lambda: (step()[0], None)  # this process's memory is not the step's

    steps = {dtype: without_memory(dtype) for dtype in dtypes}
    return time_training(f"training, {rows} x {length}", steps, rows * length, repeats)
