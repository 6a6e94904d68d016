"""The versions and the processor that an executable is for, and a check that they fit here."""

import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from obscura_jax.processor import CPUINFO, processor_fields, processor_name

# Beginnings of the flags of x86 that a compiler uses without being asked; others, such as those of
# the hypervisor, may change on one machine.
_X86: tuple[str, ...] = ("abm", "adx", "aes", "amx", "avx", "bmi", "cx16", "f16c", "fma", "gfni")
_X86 += ("lahf", "movbe", "pclmul", "pni", "popcnt", "sha", "sse", "ssse", "vaes", "vpclmul")


@dataclass(frozen=True)
class Build:
    """Versions and a processor.

    Attributes:
        jax: version of JAX.
        jaxlib: version of jaxlib, which contains the compiler.
        processor: name of the processor.
        instructions: its architecture and its instruction sets, sorted.
    """

    jax: str
    jaxlib: str
    processor: str
    instructions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON; `from_dict` reads them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Any) -> "Build":
        """Return the build with these fields; TypeError or KeyError if one is missing."""
        instructions = tuple(map(str, fields["instructions"]))
        return cls(fields["jax"], fields["jaxlib"], fields["processor"], instructions)

    def difference(self, here: "Build") -> str | None:
        """Return why what was built as this cannot run on `here`, naming both; None if it can.

        The versions must be equal, and no instruction set may be missing.
        """
        missing = sorted(set(self.instructions) - set(here.instructions))
        if not missing and (self.jax, self.jaxlib) == (here.jax, here.jaxlib):
            return None
        lacks = f" without {', '.join(missing[:3])}" if missing else ""
        return f"compiled for {self._name()}, but this is {here._name()}{lacks}"

    def _name(self) -> str:
        return f"jax {self.jax}, jaxlib {self.jaxlib} on {self.processor}"


def this_build(cpuinfo: Path = CPUINFO) -> Build:
    """Return the build of this process, with the processor that `cpuinfo` describes.

    On a system without that file, which Linux has, no instruction sets are known.
    """
    fields, machine = processor_fields(cpuinfo), platform.machine()
    found = fields.get("Features", "").split()  # ARM
    found += [flag for flag in fields.get("flags", "").split() if flag.startswith(_X86)]
    instructions = tuple(sorted({machine, *found})) if found else ()
    return Build(jax.__version__, jaxlib_version, processor_name(cpuinfo), instructions)
