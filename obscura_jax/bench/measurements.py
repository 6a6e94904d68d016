"""Measurements of one system at one workload, and the report that prints them."""

import json
import platform
import statistics
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from obscura_jax.processor import core_count


@dataclass(frozen=True)
class Measurement:
    """The measured values of one system at one workload.

    Attributes:
        name: the workload.
        system: the system that was timed.
        unit: the unit of the values.
        values: one value per round.
        compile_seconds: how much longer the first call took than the median of the others.
        mebibytes: peak memory of the process, if a process was timed.
    """

    name: str
    system: str
    unit: str
    values: list[float]
    compile_seconds: float
    mebibytes: float | None = None

    @classmethod
    def of(
        cls,
        name: str,
        system: str,
        unit: str,
        values: list[float],
        seconds: list[float],
        mebibytes: float | None = None,
    ) -> "Measurement":
        """Return the measurement of a system whose calls took `seconds`; the first one compiled."""
        first, *later = seconds
        compiling = max(0.0, first - statistics.median(later))
        return cls(name, system, unit, values, compiling, mebibytes)

    @property
    def median(self) -> float:
        """The median value."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        memory = "" if self.mebibytes is None else f"  {self.mebibytes:.0f} MiB"
        spread = f"({min(self.values):.1f} to {max(self.values):.1f})"
        return (
            f"{self.name:<28} {self.system:<24} {self.median:8.1f} {self.unit:<9}"
            f" {spread:<20} compile {self.compile_seconds:.1f} s{memory}"
        )


class BenchReport:
    """Measurements printed as they arrive, or all of them as one JSON object at the end."""

    def __init__(self, as_json: bool) -> None:
        self.measurements: list[Measurement] = []
        self._as_json = as_json
        if not as_json:
            print(", ".join(f"{name} {value}" for name, value in environment().items()))

    def add(self, *measurements: Measurement) -> None:
        """Record measurements, and print them unless the report is JSON."""
        self.measurements += measurements
        if not self._as_json:
            print(*measurements, sep="\n", flush=True)

    def warn(self, line: str) -> None:
        """Print a line unless the report is JSON, where the figures at the end have its facts."""
        if not self._as_json:
            print(line, flush=True)

    def end(self, model: str, **more: Any) -> None:
        """Print the JSON object, if the report is JSON."""
        if self._as_json:
            figures = [{**asdict(one), "median": one.median} for one in self.measurements]
            print(json.dumps({"model": model, **environment(), "figures": figures, **more}))


def environment() -> dict[str, str]:
    """Return the device, thread count and versions that the measurements depend on."""
    import jax

    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.machine()
    return {
        "device": f"{jax.device_count()} x {device.platform} ({kind})",
        "threads": str(core_count()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "obscura_jax")},
    }
