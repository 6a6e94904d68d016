"""NVIDIA GPUs that need not be present: their figures, and the devices that JAX compiles for.

The figures are from NVIDIA's datasheets (A100 80GB SXM, H100 SXM, H200 SXM, HGX B200, L4) and from
the table of compute capabilities in the CUDA programming guide. The datasheets give matrix products
with sparsity, and links in both directions together; here are dense products and one direction.
"""

import re
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax

from obscura_jax.extras import require
from obscura_jax.scale.roofline import Chip

_KIB, _MIB = 2**10, 2**20


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        name: NVIDIA's name.
        flops: dense bfloat16 operations per second in matrix products.
        bandwidth: memory bandwidth, in bytes per second.
        memory: bytes of memory.
        link: bytes per second sent to the GPUs of its host, by NVLink or PCIe.
        adapter: bytes per second sent to other hosts.
        capability: CUDA compute capability.
        cores: number of streaming multiprocessors; the next three are per multiprocessor.
        lanes: float32 units.
        threads: maximum number of resident threads.
        shared: bytes of shared memory.
        l2: bytes of L2 cache.
        clock: boost clock in GHz.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    link: float
    adapter: float
    capability: tuple[int, int]
    cores: int
    lanes: int
    threads: int
    shared: int
    l2: int
    clock: float

    @property
    def chip(self) -> Chip:
        """Return the figures for estimates. A tenth of the memory is left to CUDA and libraries."""
        usable = self.memory * 9 // 10
        return Chip(self.flops, self.bandwidth, usable, self.link, between_hosts=self.adapter)


# Adapters between hosts are those of DGX systems: 200 Gbit/s per A100, 400 Gbit/s per H100, H200
# and B200. For L4, whose link is PCIe 4.0, 100 Gbit/s is assumed.
_H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    flops=989.5e12,
    bandwidth=3.35e12,
    memory=80_000_000_000,
    link=450e9,
    adapter=50e9,
    capability=(9, 0),
    cores=132,
    lanes=128,
    threads=2048,
    shared=228 * _KIB,
    l2=50 * _MIB,
    clock=1.98,
)
GPUS = {
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        flops=312e12,
        bandwidth=2.039e12,
        memory=80_000_000_000,
        link=300e9,
        adapter=25e9,
        capability=(8, 0),
        cores=108,
        lanes=64,
        threads=2048,
        shared=164 * _KIB,
        l2=40 * _MIB,
        clock=1.41,
    ),
    "h100": _H100,
    "h200": replace(_H100, name="NVIDIA H200", bandwidth=4.8e12, memory=141_000_000_000),
    "b200": Gpu(
        name="NVIDIA B200",
        flops=2250e12,
        bandwidth=7.7e12,
        memory=180_000_000_000,
        link=900e9,
        adapter=50e9,
        capability=(10, 0),
        cores=148,
        lanes=128,
        threads=2048,
        shared=228 * _KIB,
        l2=126 * _MIB,
        clock=1.965,
    ),
    "l4": Gpu(
        name="NVIDIA L4",
        flops=121e12,
        bandwidth=300e9,
        memory=24_000_000_000,
        link=32e9,
        adapter=12.5e9,
        capability=(8, 9),
        cores=58,
        lanes=128,
        threads=1536,
        shared=100 * _KIB,
        l2=48 * _MIB,
        clock=2.04,
    ),
}

# Without these versions, XLA leaves loops out of CUDA graphs.
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {block}
  shared_memory_per_core: {gpu.shared}
  threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f}
  device_memory_size: {gpu.memory}
  l2_cache_size: {gpu.l2}
  clock_rate_ghz: {gpu.clock}
  cuda_compute_capability {{ major: {gpu.capability[0]} minor: {gpu.capability[1]} }}
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
runtime_version {{ major: 12 minor: 8 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""


def target_config(gpu: Gpu) -> str:
    """Return XLA's description of a GPU, a `GpuTargetConfigProto` in text form."""
    return _TARGET.format(gpu=gpu, block=gpu.shared - _KIB)  # CUDA reserves 1 KiB of each block's


def gpu_devices(gpu: Gpu, shape: str) -> tuple[Any, ...]:
    """Return devices of one kind, to compile for. Call it before JAX is used.

    Args:
        gpu: their kind.
        shape: their number, such as "8", or hosts and GPUs per host, such as "4x8".

    Raises:
        ValueError: if `shape` is neither; MissingExtraError without a CUDA plugin of JAX.
    """
    match = re.fullmatch(r"(?:([1-9]\d{0,3})x)?([1-9]\d{0,2})", shape)
    if not match:
        raise ValueError(
            f"{shape!r} is not a number of GPUs; give a number, like 8, or hosts x GPUs, like 4x8"
        )
    if find_spec("jax_cuda13_plugin") is None:
        require("jax_cuda12_plugin", "cuda-compile", "compiling for a GPU")
    jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="cuda",
            target_config=target_config(gpu),
            topology=f"1x{match[1] or 1}x{match[2]}",
        )
    except NotImplementedError as error:
        raise ValueError(
            "JAX did not load its CUDA plugin; set JAX_PLATFORMS=cpu before Python starts"
        ) from error
    return tuple(described.devices)
