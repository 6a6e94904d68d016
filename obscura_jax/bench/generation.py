"""Timing of generation: prefill and decode, with compilation apart."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from obscura_jax.bench.measurements import Measurement
from obscura_jax.config import GPTConfig
from obscura_jax.nn.model import GPTModel

# Takes prompts and a number of new tokens. Returns the seconds until the first token of each row,
# the seconds for all other tokens, and the tokens.
GenerateFn = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]

ONE_ROW = "decode, 1 row"  # the workload whose steps do little else than read the weights


@dataclass(frozen=True)
class Workload:
    """A batch of prompts of equal length, each continued by the same number of tokens."""

    name: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    unit: str

    def value(self, first: float, rest: float) -> float:
        """Return the value, in `unit`, that the seconds of prefill and of decoding give."""
        if self.unit == "tokens/s":
            return self.rows * self.prompt_tokens / first
        return 1000 * rest / (self.new_tokens - 1)


def generation_workloads(cfg: GPTConfig) -> list[Workload]:
    """Return prefill of half the context, and decoding of 1 and 8 rows in short and full caches."""
    context = cfg.context_length
    long, short = max(1, context // 2), max(1, context // 128)
    steps = max(2, context // 16 + 1)
    return [
        Workload(f"prefill, {long} tokens", 1, long, 1, "tokens/s"),
        Workload(ONE_ROW, 1, short, steps, "ms/step"),
        Workload("decode, 8 rows", 8, short, steps, "ms/step"),
        Workload(f"{ONE_ROW}, full cache", 1, context - steps, steps, "ms/step"),
    ]


def generate_functions(
    model: GPTModel, params: Any, dtype: str | None = None
) -> dict[str, GenerateFn]:
    """Return `Generator.generate` in `dtype`, by default in float32 and in bfloat16.

    One prompt is continued with weights as given, and several with `weights="auto"`, as in the
    commands.
    """
    from obscura_jax.decoding.engine import Generator

    def in_dtype(dtype: str) -> GenerateFn:
        @cache
        def engine(one_row: bool) -> Generator:
            return Generator(model, params, dtype=dtype, weights="as-given" if one_row else "auto")

        def call(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
            out = engine(len(prompts) == 1).generate(prompts, new_tokens)
            return out.stats.prefill_seconds, out.stats.decode_seconds, out.tokens

        return call

    return {name: in_dtype(name) for name in ([dtype] if dtype else ("float32", "bfloat16"))}


def time_generation(
    workload: Workload, functions: Mapping[str, GenerateFn], repeats: int
) -> list[Measurement]:
    """Time the functions in turn, `repeats` times: a disturbance of the machine affects all."""
    prompts = [
        [(37 * row + 11 * i) % 256 for i in range(workload.prompt_tokens)]
        for row in range(workload.rows)
    ]
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    values: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 1):
        for name, function in functions.items():
            first, rest, _ = function(prompts, workload.new_tokens)
            seconds[name].append(first + rest)
            if turn:  # the first call compiles
                values[name].append(workload.value(first, rest))
    return [
        Measurement.of(workload.name, name, workload.unit, values[name], seconds[name])
        for name in functions
    ]
