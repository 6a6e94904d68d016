"""Tests on eight CPU devices, a number that JAX must know before it starts: in other processes."""

import sys

import pytest

from tests.support import processes

# Topic -> names in `eight_devices.py`, as for `pytest -k`. Several workers can share the topics.
TOPICS = {
    "training": "losses or accumulation or scan_on_one_device",
    "generation": "tokens or cache or commands",
    "checkpoints": "checkpoint",
}
TOPICS["others"] = f"not ({' or '.join(TOPICS.values())})"


@pytest.mark.slow
@pytest.mark.parametrize("names", TOPICS.values(), ids=TOPICS)
def test_everything_holds_on_eight_devices(names):
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "-k", names]
    # Programs run slower and compile faster; the tests compare them, and inspect their collectives.
    env = processes.devices(8) | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = processes.run(
        sys.executable, "-m", "pytest", *words, "tests/support/eight_devices.py", env=env
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
