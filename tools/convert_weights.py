"""Run `obscura convert`: python tools/convert_weights.py SRC DST [--to DIALECT]."""

import runpy
import sys

if __name__ == "__main__":
    sys.argv.insert(1, "convert")
    runpy.run_module("obscura_jax", run_name="__main__")
