"""Plant every fault of `tests/pairs`, compare, and count what was found.

    python -m tests.support.planted_figure

Writes `tests/golden/planted_faults.json`, which a test compares with, and prints the table of
docs/guides/compare.md.
"""

import json
import multiprocessing
import os
import warnings
from pathlib import Path
from typing import Any

from tests.support.planted import FAULTS, outcome

RESULTS = Path(__file__).parents[1] / "golden" / "planted_faults.json"
_FAMILIES = {
    "rotary": "decoder with rotary positions and grouped heads (Flax NNX)",
    "vision": "vision transformer with convolutions (Equinox)",
    "translate": "encoder and decoder with cross attention (Flax Linen)",
    "experts": "mixture of experts (plain functions)",
    "recurrent": "LSTM and GRU (`lax.scan`)",
    "statespace": "state-space model (Flax Linen)",
    "convolution": "convolutional net (plain functions, NHWC)",
    "audio": "audio encoder (Equinox)",
    "bert": "BERT of transformers (Flax NNX)",
}


def result(number: int) -> dict[str, Any]:
    """Return what a comparison says of one planted fault."""
    warnings.simplefilter("ignore")
    fault = FAULTS[number]
    found = outcome(fault)
    return {
        "pair": fault.pair,
        "name": fault.name,
        "found": found.found,
        "placed": found.torch and found.jax,
        "mend": found.mend,
    }


def table(results: list[dict[str, Any]]) -> str:
    """Return the counts as a table in Markdown."""
    rows = ["| model | faults | found | both lines right | mend named |", "|---|--:|--:|--:|--:|"]
    for pair, words in (*_FAMILIES.items(), ("", "all")):
        own = [r for r in results if not pair or r["pair"] == pair]
        counts = (
            len(own),
            *(sum(bool(r[key]) for r in own) for key in ("found", "placed", "mend")),
        )
        rows.append(f"| {words} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


def main() -> None:
    """Run all faults, write the results and print the table."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    with multiprocessing.get_context("spawn").Pool(2, maxtasksperchild=40) as pool:
        results = pool.map(result, range(len(FAULTS)), chunksize=4)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
