"""`obscura convert` as a script: python tools/convert_weights.py SRC DST [--to native|course]."""

import sys

from obscura_jax.cli.main import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
