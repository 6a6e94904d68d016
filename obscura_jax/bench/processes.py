"""Time and peak memory of whole processes."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from obscura_jax.atomic_files import temporary_folder
from obscura_jax.bench.measurements import Measurement
from obscura_jax.config import GPTConfig

COLD_START_TOKENS = 64
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


def can_cold_start(cfg: GPTConfig) -> bool:
    """Return whether `cold_start_command` works for a model: its tokenizer and context suffice."""
    return cfg.vocab_size > 256 and cfg.context_length >= 2 * COLD_START_TOKENS


def cold_start_command(folder: str) -> list[str]:
    """Return the command of a process that loads a native model and writes greedy tokens."""
    count = str(COLD_START_TOKENS)
    words = ["generate", "--model", folder, "Hello, I am", "--max-new-tokens", count]
    return [sys.executable, "-m", "obscura_jax", *words]


def time_cold_start(commands: Mapping[str, Sequence[str]], repeats: int) -> list[Measurement]:
    """Time processes from start to end, in turn, `repeats` times after a first one that compiles.

    Compiled programs are kept in a folder of their own, which is empty at first.

    Raises:
        ValueError: if a process fails.
    """
    seconds: dict[str, list[float]] = {system: [] for system in commands}
    peaks: dict[str, float | None] = dict.fromkeys(commands)
    with temporary_folder() as cache:
        environment = {**os.environ, "OBSCURA_CACHE_DIR": str(cache)}
        for _ in range(repeats + 1):
            for system, command in commands.items():
                taken, peaks[system] = _run_process(command, environment)
                seconds[system].append(taken)
    name = f"process, {COLD_START_TOKENS} tokens"
    return [
        Measurement.of(name, system, "s", taken[1:], taken, peaks[system])
        for system, taken in seconds.items()
    ]


def peak_mebibytes() -> float | None:
    """Return the peak memory of this process in MiB, or None if the system does not tell."""
    status = Path("/proc/self/status")  # getrusage would count the parent's as well
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 2**10
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _run_process(
    command: Sequence[str], environment: Mapping[str, str]
) -> tuple[float, float | None]:
    """Return seconds and MiB of a process.

    A small process starts it, because the peak of a child includes the memory of its parent.
    """
    launcher = [sys.executable, "-c", _LAUNCHER, *command]
    done = subprocess.run(launcher, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(f"the timed process failed: {done.stderr.strip() or command}")
    seconds, mebibytes = map(float, done.stdout.split())
    return seconds, mebibytes or None
