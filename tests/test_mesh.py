"""The mesh, on eight CPU devices: JAX must be told of them before it starts, so another process."""

import sys

from tests.support import processes


def test_on_eight_devices():
    """Every test in `eight_devices.py`; its report is this one's where it fails."""
    words = ["-q", "-p", "no:cacheprovider", "-p", "no:randomly", "tests/support/eight_devices.py"]
    done = processes.run(sys.executable, "-m", "pytest", *words, env=processes.devices(8))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
