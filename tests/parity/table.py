"""Print the largest difference between each component and its PyTorch twin, for docs/explain.

    python -m tests.parity.table        # or: make parity-table

Differences are relative to the largest entry of the PyTorch array. Each cell has the difference of
the output, then the largest difference of the gradients.
"""

import jax
import numpy as np

from tests.parity.compare import differences, run_port, run_reference
from tests.parity.twins import TWINS, Twin


def measure(twin: Twin, dtype: type) -> tuple[float, float]:
    """Return the difference of the output and the largest difference of the gradients."""
    found = differences(run_port(twin, dtype), run_reference(twin, dtype))
    return found.pop("output"), max(found.values())


def main() -> None:
    """Measure every twin and print the table in Markdown."""
    print("| course component | ours | float32: output, gradients | float64: output, gradients |")
    print("|---|---|---|---|")
    for twin in TWINS:
        float32 = measure(twin, np.float32)
        with jax.enable_x64(True):
            float64 = measure(twin, np.float64)
        cells = [", ".join(f"{x:.1e}" for x in found) for found in (float32, float64)]
        print(f"| {twin.name} | `{twin.home}` | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
