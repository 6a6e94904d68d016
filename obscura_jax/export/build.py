"""The versions and the chip that an executable is for, and a check that they fit here."""

import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from obscura_jax.processor import CPUINFO, processor_fields, processor_name

# Beginnings of the flags of x86 that a compiler uses without being asked; others, such as those of
# the hypervisor, may change on one machine.
_X86: tuple[str, ...] = ("abm", "adx", "aes", "amx", "avx", "bmi", "cx16", "f16c", "fma", "gfni")
_X86 += ("lahf", "movbe", "pclmul", "pni", "popcnt", "sha", "sse", "ssse", "vaes", "vpclmul")
_PLUGINS = ("jax-cuda13-plugin", "jax-cuda12-plugin")  # in the order in which JAX looks for them


@dataclass(frozen=True)
class Build:
    """Versions and a chip.

    Attributes:
        jax: version of JAX.
        jaxlib: version of jaxlib, which contains the compiler for processors.
        processor: name of the processor or of the GPU.
        instructions: architecture and instruction sets of a processor, sorted; none for a GPU.
        plugin: name and version of JAX's plugin for the GPU, which contains its compiler; None for
            a processor.
    """

    jax: str
    jaxlib: str
    processor: str
    instructions: tuple[str, ...]
    plugin: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> "Build":
        """Return the build with these fields; TypeError or KeyError if one is missing."""
        instructions = tuple(map(str, fields["instructions"]))
        versions = fields["jax"], fields["jaxlib"]
        return cls(*versions, fields["processor"], instructions, fields.get("plugin"))

    def difference(self, here: "Build") -> str | None:
        """Return why what was built as this cannot run on `here`, naming both; None if it can.

        The versions must be equal. No instruction set of a processor may be missing, and a GPU must
        be of the same kind.
        """
        missing = sorted(set(self.instructions) - set(here.instructions))
        fits = self.plugin is None or self.processor == here.processor
        if fits and not missing and self._versions() == here._versions():
            return None
        lacks = f" without {', '.join(missing[:3])}" if missing else ""
        return f"compiled for {self._name()}, but this is {here._name()}{lacks}"

    def _name(self) -> str:
        return f"{self._versions()} on {self.processor}"

    def _versions(self) -> str:
        plugin = f", {self.plugin}" if self.plugin else ""
        return f"jax {self.jax}, jaxlib {self.jaxlib}{plugin}"


def this_build(cpuinfo: Path = CPUINFO) -> Build:
    """Return the build of this process, with the processor that `cpuinfo` describes.

    On a system without that file, which Linux has, no instruction sets are known.
    """
    fields, machine = processor_fields(cpuinfo), platform.machine()
    found = fields.get("Features", "").split()  # ARM
    found += [flag for flag in fields.get("flags", "").split() if flag.startswith(_X86)]
    instructions = tuple(sorted({machine, *found})) if found else ()
    return Build(jax.__version__, jaxlib_version, processor_name(cpuinfo), instructions)


def build_for(device: Any) -> Build:
    """Return the build of this process for a device: this machine's CPU, or a GPU of any machine.

    The GPU may be absent: a device that `scale.nvidia.gpu_devices` describes.
    """
    if device.platform != "gpu":
        return this_build()
    versions = jax.__version__, jaxlib_version
    return Build(*versions, device.device_kind, instructions=(), plugin=_cuda_plugin())


def _cuda_plugin() -> str:
    """Return the name and version of JAX's CUDA plugin."""
    for name in _PLUGINS:
        with suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return "unknown plugin"
