"""Threads for a process that divides its CPU into several devices."""

import os
import re


def add_threads_for_cpu_devices() -> None:
    """Let XLA start four threads per CPU device, if the environment asks for several devices.

    By default XLA starts one thread per device. A device that waits for others in a collective
    keeps its thread, and a training step can then wait forever for a free one. Call this before JAX
    starts. A number that is already in the environment variable PJRT_NPROC is kept.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    counts = re.findall(r"--xla_force_host_platform_device_count=(\d+)", flags)
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "") or "".join(counts[-1:])
    if count.isdecimal() and int(count) > 1:
        os.environ.setdefault("PJRT_NPROC", str(4 * int(count)))
