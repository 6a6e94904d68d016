"""Communication between devices in a compiled program, read from its HLO text.

The text has no stable grammar. These regular expressions were written for XLA:CPU and XLA:GPU of
jaxlib 0.10.2 and XLA:TPU of libtpu 0.0.42; later versions may need others.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
_OP = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=(%[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_DEVICES = re.compile(r"num_partitions=(\d+)")
_GROUPS = re.compile(r"replica_groups=(\S*(?:[^{]*\{'[^}]*\})?)")
_SCATTER = "all-reduce-scatter"  # TPU computation that sums and keeps one part
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_BITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Collective:
    """One collective operation.

    Attributes:
        kind: "all-reduce", "all-gather", ...
        arrays: type and shape of each result array, per device.
        times: executions per program run; loops of unknown length count once.
        members: the devices of the first group that communicates, by their number in the mesh.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    members: tuple[int, ...]

    @property
    def group(self) -> int:
        """Return the number of devices that communicate with each other."""
        return len(self.members)

    @property
    def bytes(self) -> int:
        """Return the bytes of all result arrays, per execution."""
        return sum(math.prod(shape) * _bits(dtype) for dtype, shape in self.arrays) // 8

    @property
    def bytes_sent(self) -> float:
        """Return the fewest bytes a device must send, per execution (Patarasuk and Yuan 2009)."""
        others = self.group - 1
        if self.kind == "collective-permute":
            return self.bytes
        if self.kind == "reduce-scatter":  # its result is one of the group's parts
            return self.bytes * others
        return self.bytes * others / self.group * (2 if self.kind == "all-reduce" else 1)


def collectives(hlo: str) -> list[Collective]:
    """Return all collectives in the text from `compiled.as_text()`."""
    bodies = dict(_computations(hlo))
    times = _times(bodies)
    count = _DEVICES.search(hlo)
    everyone = tuple(range(int(count[1]) if count else 1))
    found, seen = [], set()
    for name, lines in bodies.items():
        for line in lines:
            match, channel = _OP.search(line), _CHANNEL.search(line)
            if not match or (channel and channel[1] in seen):
                continue  # TPU programs list an asynchronous collective three times
            if channel:
                seen.add(channel[1])
            arrays = _arrays(match[1])
            if f"{match[2]}-start(" in line and match[2] != "all-reduce":
                # The result tuple has the operands, then the results, then internal numbers.
                arrays = tuple(array for array in arrays if array != ("u32", ()))
                arrays = arrays[len(arrays) // 2 :]
            kind, members = match[2], _members(line) or everyone
            if name.startswith(_SCATTER):
                kind, arrays = "reduce-scatter", _arrays(re.sub(r" [\w-]+\(.*", "", lines[-1]))
            found.append(Collective(kind, arrays, times[name], members))
    return found


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the type and shape of each array in an HLO result type."""
    return tuple(
        (dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(text)
    )


def _members(line: str) -> tuple[int, ...] | None:
    """Return the first group of devices, from XLA's three notations; None means all devices."""
    groups = _GROUPS.search(line)
    if not groups:
        return None
    if tiled := re.match(r"\[\d+,(\d+)\]<=(\S+)", groups[1]):  # [groups, devices per group]<=...
        return tuple(_numbered(tiled[2])[: int(tiled[1])].tolist())
    if axes := re.match(r"mesh\[([^]]*)\](?:, device_ids=\((.*)\))?.*\{(.*)\}", groups[1]):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        places = {name: np.zeros(1, int) for name in sizes}
        for name, before, part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", axes[3]):
            size = int(part or sizes[name])  # an axis or a part of one
            step = sizes[name] // (size * int(before or 1))
            places[name] = np.add.outer(places[name], step * np.arange(size)).ravel()
        devices = _numbered(axes[2] or f"[{math.prod(sizes.values())}]")
        chosen = devices.reshape(tuple(sizes.values()))[np.ix_(*places.values())]
        return tuple(chosen.ravel().tolist())
    first = re.match(r"\{\{([\d,]+)\}", groups[1])
    return tuple(int(device) for device in first[1].split(",")) if first else None


def _numbered(text: str) -> np.ndarray[Any, Any]:
    """Return the devices in the order of XLA's notation [sizes]T(permutation of the axes)."""
    sizes, *order = ([int(n) for n in part.split(",")] for part in re.findall(r"[\d,]*\d", text))
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return (devices.transpose(order[0]) if order else devices).ravel()


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and lines of each computation."""
    name, lines = "", list[str]()
    for line in hlo.splitlines():
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            name, lines = match[1], []
        elif line.startswith("}"):
            yield name, lines
            lines = []
        else:
            lines.append(line)


def _times(bodies: dict[str, list[str]]) -> dict[str, int]:
    """Return the executions of each computation per program run, through loops and calls."""
    calls: dict[str, list[tuple[str, int]]] = {}
    for name, lines in bodies.items():
        for line in lines:
            count = _trips(line, bodies)
            called = " ".join(_CALLED.findall(line) + _BRANCHES.findall(line))
            for callee in re.findall(r"%([\w.\-]+)", called):
                calls.setdefault(callee, []).append((name, count))

    @cache
    def of(name: str) -> int:
        return sum(of(caller) * times for caller, times in calls[name]) if name in calls else 1

    return {name: of(name) for name in bodies}


def _bits(dtype: str) -> int:
    """Return the number of bits of a type: "f32", "bf16", "pred", ..."""
    bits = _BITS.search(dtype)
    return int(bits[0]) if bits else 8


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """Return the iterations of the loop in a line: XLA's own count, or else its limit / step."""
    if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', line):
        return int(known[1])
    loop = re.search(r"condition=%([\w.\-]+), body=%([\w.\-]+)", line)
    if not loop:
        return 1
    condition, body = ("\n".join(bodies.get(name, ())) for name in loop.groups())
    limits = _CONSTANT.findall(condition)
    counter = re.search(r"= [su]32\[\]\S* get-tuple-element\(\S+\), index=(\d+)", condition)
    if len(limits) != 1 or not counter:
        return 1
    return -(-int(limits[0][1]) // _step(body, int(counter[1])))


def _step(body: str, place: int) -> int:
    """Return the increment of the loop counter at tuple index `place`; TPU loops are unrolled."""
    results = re.search(r"ROOT .* tuple\(([^)]*)\)", body)
    names = re.findall(r"%([\w.\-]+)", results[1]) if results else []
    if place < len(names) and (
        added := re.search(rf"%{re.escape(names[place])} = .* add\(\S+, %([\w.\-]+)\)", body)
    ):
        return int(dict(_CONSTANT.findall(body)).get(added[1], 1))
    return 1
