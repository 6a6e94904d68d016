"""The processor of this machine, as Linux describes it."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def processor_fields(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Return what the file `cpuinfo` says of the first core; nothing on other systems."""
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    first = text.split("\n\n")[0].splitlines()
    return {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in first)}


def processor_name(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor, or else of the system and its architecture."""
    known = processor_fields(cpuinfo).get("model name")
    return known or f"{platform.system()} {platform.machine()}"


def core_count() -> int | None:
    """Return the number of cores that this process may use, or None if it is unknown."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
