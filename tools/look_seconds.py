"""Time what a served page waits for: the views of a text, then the ablations.

    python tools/look_seconds.py [--model MODEL]

Prints the medians, in seconds, over several texts of 32 tokens, after the first of them, which
compiles.
"""

import argparse
import json
import statistics
import time

from obscura_jax import load_model
from obscura_jax.look.viewer import Opened, Viewer
from obscura_jax.text.tokenizers import tokenizer_for

_TOKENS, _TEXTS = 32, 3


def main() -> None:
    """Time both questions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="torch-seed:0", help="model, as in load_model")
    args = parser.parse_args()
    model, params = load_model(args.model)
    viewer = Viewer([Opened("model", model, params, tokenizer_for(model.cfg.vocab_size))])
    views, ablations = [], []
    for number in range(_TEXTS + 1):
        ids = [(7 * number + 31 * position) % 256 for position in range(_TOKENS)]
        begin = time.perf_counter()
        json.dumps(viewer.data(ids, ablate=False))
        middle = time.perf_counter()
        json.dumps(viewer.ablations(ids))
        views.append(middle - begin)
        ablations.append(time.perf_counter() - middle)
    print(f"views      {statistics.median(views[1:]):.2f} s")
    print(f"ablations  {statistics.median(ablations[1:]):.2f} s")


if __name__ == "__main__":
    main()
