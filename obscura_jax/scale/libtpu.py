"""libtpu where there is no TPU: what it must be told to compile all the same, and to be quiet."""

import os
from importlib.util import find_spec
from pathlib import Path

_GOOGLE = "0x1ae0"  # who made a TPU, among PCI devices
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",  # nobody is there to be asked
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # it locks others out, and no chip is used
}


def leave_alone() -> None:
    """Have it look for no TPU; what the environment says already stays."""
    for variable, value in _ALONE.items():
        os.environ.setdefault(variable, value)


def quiet() -> None:
    """`leave_alone`, if it is installed and no TPU is here: else it complains as JAX starts."""
    if find_spec("libtpu") is None:
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(vendor.read_text().strip() == _GOOGLE for vendor in vendors):
        leave_alone()
