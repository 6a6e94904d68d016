"""Roofline estimates: the time that a program needs at least, from a chip's published figures."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from obscura_jax.scale.collectives import Collective


@dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
        flops: bfloat16 operations per second in matrix products.
        bandwidth: memory bandwidth, in bytes per second.
        memory: bytes of memory available to programs.
        network: bytes per second sent to its neighbors, over all links together.
        between_hosts: bytes per second sent to chips of other hosts; None if that is `network`.
    """

    flops: float
    bandwidth: float
    memory: int
    network: float
    between_hosts: float | None = None


# TPUs, from Google Cloud's documentation; GPUs are in nvidia.py. The system reserves some memory:
# XLA gives programs 15.75 of the 16 GiB of a v5e.
CHIPS = {
    "v4": Chip(275e12, 1.228e12, int(31.75 * 2**30), 300e9),
    "v5e": Chip(197e12, 0.819e12, int(15.75 * 2**30), 200e9),
    "v5p": Chip(459e12, 2.765e12, int(95.0 * 2**30), 600e9),
    "v6e": Chip(918e12, 1.640e12, int(31.25 * 2**30), 448e9),
}


def matrix_flops(jaxpr: Any) -> int:
    """Count the multiplications and additions of all matrix products in a jaxpr.

    Each iteration of a scan counts. A `while_loop`, whose length is unknown, counts once: one token
    of decoding.
    """
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            lhs = equation.invars[0].aval.shape
            depth = math.prod(lhs[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif equation.primitive.name == "cond":
            total += max(matrix_flops(branch.jaxpr) for branch in params["branches"])
        else:
            inner = (getattr(value, "jaxpr", value) for value in params.values())
            count = params.get("length", 1) if equation.primitive.name == "scan" else 1
            total += count * sum(matrix_flops(body) for body in inner if hasattr(body, "eqns"))
    return total


def communication_seconds(chip: Chip, found: Iterable[Collective], hosts: Sequence[int]) -> float:
    """Return the seconds in which a chip can send what its collectives need, at least.

    Args:
        chip: the figures of a chip.
        found: the collectives of a program.
        hosts: the host of each device of the program.
    """
    seconds = 0.0
    for one in found:
        speed = chip.network
        local = sum(hosts[member] == hosts[one.members[0]] for member in one.members)
        if chip.between_hosts and local < one.group:
            # Chips of a host pass on each other's parts: as many rings as chips, each through all
            # hosts, share the work, and each ring has an adapter.
            speed = min(speed, local * chip.between_hosts)
        seconds += one.times * one.bytes_sent / speed
    return seconds


def roofline(chip: Chip, flops: float, moved: float, network: float) -> dict[str, Any]:
    """Return the seconds that each resource of a chip needs, the longest, and its name.

    Args:
        chip: the figures of a chip.
        flops: operations in matrix products.
        moved: bytes that its memory moves.
        network: seconds of communication.
    """
    seconds = {
        "compute": flops / chip.flops,
        "memory": moved / chip.bandwidth,
        "network": network,
    }
    longest = max(seconds, key=lambda name: seconds[name])
    return {**seconds, "bound": longest, "seconds": seconds[longest]}
