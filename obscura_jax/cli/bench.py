"""`obscura bench`: how fast a model runs on this machine, the time of compiling apart."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from obscura_jax.atomic_files import temporary_folder
from obscura_jax.cli.arguments import size

# Prompts and the number of new tokens, to seconds until the first token of each row, seconds for
# all others, and the tokens.
System = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]
_COLD_TOKENS = 64
_LAUNCHER = """
import subprocess, sys, time
start = time.perf_counter()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
seconds = time.perf_counter() - start
sys.stderr.buffer.write(done.stderr)
try:
    import resource
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
except ImportError:
    peak = 0
print(seconds, peak / (2**20 if sys.platform == "darwin" else 2**10))
sys.exit(done.returncode)
"""


@dataclass(frozen=True)
class Work:
    """One thing to time: a batch of equal prompts' lengths, continued by some tokens."""

    name: str
    rows: int
    prompt_tokens: int
    new_tokens: int
    unit: str

    def value(self, first: float, rest: float) -> float:
        """The figure that two times give, in `unit`."""
        if self.unit == "tokens/s":
            return self.rows * self.prompt_tokens / first
        return 1000 * rest / (self.new_tokens - 1)


@dataclass(frozen=True)
class Figure:
    """What was measured of one system at one work.

    Attributes:
        values: what each round gave.
        compile_seconds: by how much the first call was slower than the median one.
        mebibytes: a process's peak memory, where a process was timed.
    """

    name: str
    system: str
    unit: str
    values: list[float]
    compile_seconds: float
    mebibytes: float | None = None

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        memory = "" if self.mebibytes is None else f"  {self.mebibytes:.0f} MiB"
        spread = f"({min(self.values):.1f} to {max(self.values):.1f})"
        return (
            f"{self.name:<28} {self.system:<24} {self.median:8.1f} {self.unit:<9}"
            f" {spread:<20} compile {self.compile_seconds:.1f} s{memory}"
        )


def add_to(commands: Any) -> None:
    """Declare the command's words."""
    parser = commands.add_parser("bench", help="time a model on this machine")
    add_arguments(parser)
    parser.set_defaults(run=run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `obscura bench` and tools/bench_generate.py are told alike."""
    add = parser.add_argument
    add("--model", default="torch-seed:0:gpt2", help="default: torch-seed:0:gpt2, of 124M")
    add("--n-heads", type=size, metavar="H", help="if the model does not say")
    add("--dtype", choices=("float32", "bfloat16"), help="compute in it; default: both, in turn")
    add("--repeats", type=size, default=5, metavar="N", help="of each measurement; default: 5")
    add("--no-cold", action="store_true", help="leave out the start of a process")
    add("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> None:
    """Time prefill, decode, training and a cold process, and print a line for each."""
    import jax

    from obscura_jax.interop.files import load_model, save_model

    model, params = load_model(args.model, n_heads=args.n_heads)
    report = Report(args.json)
    systems = ours(model, params, args.dtype)
    for work in works(model.cfg):
        report.add(*measure(work, systems, args.repeats))
    report.add(*_training(model.cfg, list(systems), args.repeats))
    if not args.no_cold and runs_text(model.cfg):
        with temporary_folder() as folder:
            save_model(f"{folder}/model", model.cfg, jax.device_get(params))
            report.add(*cold({"float32": cold_command(f"{folder}/model")}, args.repeats))
    report.end(args.model)


def ours(model: Any, params: Any, dtype: str | None = None) -> dict[str, System]:
    """`generate` in each number type, as systems to time."""
    from obscura_jax.decoding.generate import generate
    from obscura_jax.decoding.plan import computed_in

    def system(dtype: str) -> System:
        own = computed_in(dtype, params)

        def call(prompts: list[list[int]], new_tokens: int) -> tuple[float, float, list[list[int]]]:
            out = generate(model, own, prompts, new_tokens)
            return out.stats.prefill_seconds, out.stats.decode_seconds, out.tokens

        return call

    return {name: system(name) for name in ([dtype] if dtype else ("float32", "bfloat16"))}


def _training(cfg: Any, dtypes: Sequence[str], repeats: int) -> list[Figure]:
    from obscura_jax.cli import bench_training

    rows, length = 4, min(256, cfg.context_length)

    def alone(dtype: str) -> bench_training.Stepper:
        step = bench_training.ours(cfg, rows, length, dtype)
        return lambda: (step()[0], None)  # this process's memory is not the step's

    steppers = {dtype: alone(dtype) for dtype in dtypes}
    name = f"training, {rows} x {length}"
    return bench_training.measure(name, steppers, rows * length, repeats)


def works(cfg: Any) -> list[Work]:
    """What is timed: reading 512 tokens, and steps of 1 and 8 rows, in short and full caches."""
    context = cfg.context_length
    long, short = max(1, context // 2), max(1, context // 128)
    steps = max(2, context // 16 + 1)
    return [
        Work(f"prefill, {long} tokens", 1, long, 1, "tokens/s"),
        Work("decode, 1 row", 1, short, steps, "ms/step"),
        Work("decode, 8 rows", 8, short, steps, "ms/step"),
        Work("decode, 1 row, full cache", 1, context - steps, steps, "ms/step"),
    ]


def runs_text(cfg: Any) -> bool:
    """Whether a process can be timed: the tokenizer fits, and so does the text."""
    return bool(cfg.vocab_size > 256 and cfg.context_length >= 2 * _COLD_TOKENS)


def measure(work: Work, systems: Mapping[str, System], repeats: int) -> list[Figure]:
    """Time the systems in turn, `repeats` times over: what disturbs the machine disturbs all."""
    prompts = [
        [(37 * row + 11 * i) % 256 for i in range(work.prompt_tokens)] for row in range(work.rows)
    ]
    whole: dict[str, list[float]] = {name: [] for name in systems}
    values: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(repeats + 1):
        for name, system in systems.items():
            first, rest, _ = system(prompts, work.new_tokens)
            whole[name].append(first + rest)
            if turn:  # the first call compiles
                values[name].append(work.value(first, rest))
    return [figure(work.name, name, work.unit, values[name], whole[name]) for name in systems]


def cold(
    commands: Mapping[str, Sequence[str]],
    repeats: int,
    name: str = f"process, {_COLD_TOKENS} tokens",
) -> list[Figure]:
    """Time whole processes, from their start to their end, in turn; the first run compiles."""
    times: dict[str, list[float]] = {system: [] for system in commands}
    peaks: dict[str, float | None] = dict.fromkeys(commands)
    with temporary_folder() as cache:
        environment = {**os.environ, "OBSCURA_CACHE_DIR": str(cache)}
        for _ in range(repeats + 1):
            for system, command in commands.items():
                seconds, peaks[system] = _run_process(command, environment)
                times[system].append(seconds)
    return [
        figure(name, system, "s", times[system][1:], times[system], peaks[system])
        for system in commands
    ]


def cold_command(folder: str) -> list[str]:
    """A process that loads a native model and writes greedy tokens."""
    words = ["generate", "--model", folder, "Hello, I am", "--max-new-tokens", str(_COLD_TOKENS)]
    return [sys.executable, "-m", "obscura_jax", *words]


class Report:
    """Figures printed as they come, or all of them as one JSON object at the end."""

    def __init__(self, as_json: bool) -> None:
        self.figures: list[Figure] = []
        self._as_json = as_json
        if not as_json:
            print(", ".join(f"{name} {value}" for name, value in environment().items()))

    def add(self, *figures: Figure) -> None:
        """Take figures, and print them."""
        self.figures += figures
        if not self._as_json:
            print(*figures, sep="\n", flush=True)

    def end(self, model: str, **more: Any) -> None:
        """Print the JSON object."""
        if self._as_json:
            figures = [{**asdict(figure), "median": figure.median} for figure in self.figures]
            print(json.dumps({"model": model, **environment(), "figures": figures, **more}))


def environment() -> dict[str, str]:
    """What the figures depend on: device, threads, versions."""
    import jax

    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.machine()
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": f"{jax.device_count()} x {device.platform} ({kind})",
        "threads": str(threads),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "obscura_jax")},
    }


def figure(
    name: str,
    system: str,
    unit: str,
    values: list[float],
    seconds: list[float],
    mebibytes: float | None = None,
) -> Figure:
    """The figure of a system whose calls, the first of which compiled, took `seconds`."""
    first, *later = seconds
    compiling = max(0.0, first - statistics.median(later))
    return Figure(name, system, unit, values, compiling, mebibytes)


def _run_process(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple[float, float | None]:
    """Seconds and MiB, from a small process between: ours would count its own memory as well."""
    launcher = [sys.executable, "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"a process to be timed failed: {done.stderr.strip() or command}")
    seconds, mebibytes = map(float, done.stdout.split())
    return seconds, mebibytes or None
