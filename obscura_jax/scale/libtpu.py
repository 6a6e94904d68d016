"""TPUs that need not be present: the devices of libtpu that JAX compiles for, without warnings."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from obscura_jax.extras import require

_GOOGLE = "0x1ae0"  # the PCI vendor id of Google, which makes TPUs
_NO_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server to ask
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # libtpu locks out other processes, but no chip is used
}


def disable_tpu_lookup() -> None:
    """Tell libtpu not to look for a TPU. Variables that are already set are kept."""
    for variable, value in _NO_TPU.items():
        os.environ.setdefault(variable, value)


def silence_if_no_tpu() -> None:
    """Call `disable_tpu_lookup` if libtpu is installed but there is no TPU, to avoid warnings."""
    if find_spec("libtpu") is None:
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if not any(vendor.read_text().strip() == _GOOGLE for vendor in vendors):
        disable_tpu_lookup()


def tpu_devices(name: str) -> tuple[Any, ...]:
    """Return the devices of a slice such as "v5e:4x4", to compile for. Call it before JAX is used.

    Raises:
        ValueError: if there is no such slice; MissingExtraError without libtpu.
    """
    require("libtpu", "tpu", "compiling for a TPU")
    disable_tpu_lookup()
    import jax  # only now: JAX reads these variables when it is imported
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")

    try:
        return tuple(topologies.get_topology_desc(name, platform="tpu").devices)
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0].removeprefix("INVALID_ARGUMENT: ")
        raise ValueError(f"unknown topology {name!r}: {first}") from error
