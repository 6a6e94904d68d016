"""Processes that tests start.

They have no time limit, since a machine may be busy: `faulthandler_timeout` in pyproject.toml ends
a test session that hangs. Processes that a failed test leaves are killed at its end (conftest.py).
"""

import os
import subprocess
import sys
from subprocess import PIPE

OBSCURA = [sys.executable, "-m", "obscura_jax"]
_started = []


def run(*command, env=None, **how):
    """Run a program to its end and return its exit code and output, text by default.

    `env` is added to the environment, from which PYTHONUNBUFFERED is removed: users do not set it.
    """
    pipes = {"stdout": PIPE, "stderr": PIPE, "encoding": "utf-8"}
    return subprocess.run(_words(command), env=_environment(env), **pipes | how)


def start(*command, env=None, **how):
    """Start a program whose standard output and error are one pipe of text by default."""
    pipes = {"stdout": PIPE, "stderr": subprocess.STDOUT, "encoding": "utf-8"}
    process = subprocess.Popen(_words(command), env=_environment(env), **pipes | how)
    _started.append(process)
    return process


def ended(processes):
    """Return what each process printed, and its exit code, once all have ended."""
    said = [process.communicate()[0] for process in processes]
    return said, [process.returncode for process in processes]


def devices(count):
    """Return the environment for `count` CPU devices.

    By default XLA ends a process if one device waits 40 s for the others, as on a busy machine,
    and has only one thread per device; see `scale.cpu_devices`.
    """
    wait = "--xla_cpu_collective_call_terminate_timeout_seconds=100000"
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), wait)))
    return {
        "JAX_NUM_CPU_DEVICES": str(count),
        "PJRT_NPROC": str(4 * count),
        "XLA_FLAGS": flags,
    }


def kill_all():
    """Kill the processes that `start` started and that still run."""
    while _started:
        with _started.pop() as process:  # closes its pipes
            process.kill()


def _words(command):
    return [*map(str, command)]


def _environment(more):
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return inherited | (more or {})
