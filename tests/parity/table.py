"""Measure the largest difference between each component and its PyTorch twin, for docs/explain.

    python -m tests.parity.table          # this processor
    python -m tests.parity.table --save   # the largest of three kinds; or: make parity-table

Differences are relative to the largest entry of the PyTorch array: of the output, and the largest
of the gradients. Each component is printed as a line of JSON. `--save` measures as on processors
with AVX-512, with AVX2 and with neither, and writes docs/data/components.json.
"""

import argparse
import json
import sys

import jax
import numpy as np

from docs.hooks.data_files import add_save_option, save, significant, this_machine
from obscura_jax.processor import processor_fields
from tests.parity.compare import differences, run_port, run_reference
from tests.parity.twins import TWINS, Twin
from tests.support import processes

# For each kind of processor, what PyTorch, its MKL and XLA may use.
PROCESSORS = {
    "AVX-512": ("avx512", "AVX512", "AVX512"),
    "AVX2": ("avx2", "AVX2", "AVX2"),
    "neither": ("default", "COMPATIBLE", "SSE4_2"),
}


def measure(twin: Twin, dtype: type) -> tuple[float, float]:
    """Return the difference of the output and the largest difference of the gradients."""
    found = differences(run_port(twin, dtype), run_reference(twin, dtype))
    return found.pop("output"), max(found.values())


def row(twin: Twin) -> dict[str, object]:
    """Return the differences of a twin in both number types, with two digits."""
    found = {"float32": measure(twin, np.float32)}
    with jax.enable_x64(True):
        found["float64"] = measure(twin, np.float64)
    rounded = {name: [significant(x, 2) for x in pair] for name, pair in found.items()}
    return {"component": twin.name, "ours": twin.home, **rounded}


def rows_on(processor: str) -> list[dict]:
    """Return the rows of all twins, measured in a process for one kind of processor."""
    torch, mkl, xla = PROCESSORS[processor]
    env = {"ATEN_CPU_CAPABILITY": torch, "MKL_CBWR": mkl, "XLA_FLAGS": f"--xla_cpu_max_isa={xla}"}
    ended = processes.run(sys.executable, "-m", "tests.parity.table", env=env)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in ended.stdout.splitlines()]


def largest(rows: tuple[dict, ...]) -> dict:
    """Return one row with the largest differences of several rows of the same component."""
    kinds = "float32", "float64"
    return {**rows[0], **{kind: np.max([row[kind] for row in rows], 0).tolist() for kind in kinds}}


def main() -> None:
    """Measure every twin, and print or save the differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_save_option(parser)
    if folder := parser.parse_args().save:
        if "avx512f" not in processor_fields().get("flags", "").split():
            parser.error("--save needs a processor with AVX-512; run it on one")
        folder.mkdir(parents=True, exist_ok=True)
        rows = [*map(largest, zip(*map(rows_on, PROCESSORS), strict=True))]
        save(
            folder / "components.json",
            rows,
            command="python -m tests.parity.table",
            packages=["torch"],
            machine=f"{this_machine()}: the largest with AVX-512, with AVX2 and with neither",
        )
    else:
        for twin in TWINS:
            print(json.dumps(row(twin)), flush=True)


if __name__ == "__main__":
    main()
