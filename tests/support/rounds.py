"""The number of rounds of a random trial: small in `make test`, large in `make test-all`."""

import os


def rounds(short: int, long: int) -> int:
    """Return `long` if the environment variable OBSCURA_LONG_TESTS is set, else `short`."""
    return long if os.environ.get("OBSCURA_LONG_TESTS") else short
