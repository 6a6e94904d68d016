"""What a compiled program sends between devices, read from its HLO text."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
_OP = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=(%[\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_DEVICES = re.compile(r"num_partitions=(\d+)")
_GROUPS = re.compile(r"replica_groups=(\S*(?:[^{]*\{'[^}]*\})?)")
_SCATTER = "all-reduce-scatter"  # a TPU program's computation of a sum of which a part is kept
_CONSTANT = re.compile(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)")
_BITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Collective:
    """One operation.

    Attributes:
        kind: "all-reduce", "all-gather", ...
        arrays: the type and shape of each array that it gives, on each device.
        times: how often a run of the program comes by; once for a loop of unknown length.
        group: how many devices take part together.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    group: int

    @property
    def bytes(self) -> int:
        """Of all its arrays, each time."""
        return sum(math.prod(shape) * _bits(dtype) for dtype, shape in self.arrays) // 8

    @property
    def sent(self) -> float:
        """Bytes that each device sends at least, each time (Patarasuk and Yuan 2009)."""
        others = self.group - 1
        if self.kind == "collective-permute":
            return self.bytes
        if self.kind == "reduce-scatter":  # whose result is one of the group's parts
            return self.bytes * others
        return self.bytes * others / self.group * (2 if self.kind == "all-reduce" else 1)


def collectives(hlo: str) -> list[Collective]:
    """All of a program's collectives, of `compiled.as_text()`."""
    bodies = dict(_computations(hlo))
    times = _times(bodies)
    devices = _DEVICES.search(hlo)
    found, seen = [], set()
    for name, lines in bodies.items():
        for line in lines:
            match, channel = _OP.search(line), _CHANNEL.search(line)
            if not match or (channel and channel[1] in seen):
                continue  # TPU programs name one that runs beside others in three places
            if channel:
                seen.add(channel[1])
            arrays = _arrays(match[1])
            if f"{match[2]}-start(" in line and match[2] != "all-reduce":
                # It gives its operands, then its results, then numbers of its own.
                arrays = tuple(array for array in arrays if array != ("u32", ()))
                arrays = arrays[len(arrays) // 2 :]
            kind, group = match[2], _group(line) or (int(devices[1]) if devices else 1)
            if name.startswith(_SCATTER):
                kind, arrays = "reduce-scatter", _arrays(re.sub(r" [\w-]+\(.*", "", lines[-1]))
            found.append(Collective(kind, arrays, times[name], group))
    return found


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The arrays that an operation gives."""
    return tuple(
        (dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(text)
    )


def _group(line: str) -> int | None:
    """Devices in a group, of the three ways in which XLA writes groups; None is all devices."""
    groups = _GROUPS.search(line)
    if not groups:
        return None
    if tiled := re.match(r"\[\d+,(\d+)\]", groups[1]):  # [groups, devices of each]<=...
        return int(tiled[1])
    if axes := re.match(r"mesh\[([^]]*)\].*\{(.*)\}", groups[1]):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        split = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])  # an axis, or part of it
        return math.prod(int(part or sizes[axis]) for axis, part in split)
    first = re.match(r"\{\{([\d,]+)\}", groups[1])
    return len(first[1].split(",")) if first else None


def _computations(hlo: str) -> Iterator[tuple[str, list[str]]]:
    """Each computation's name and lines."""
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
    """How often each computation that a loop or another calls is run."""
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
    """Of a number of type "f32", "bf16", "pred", ..."""
    bits = _BITS.search(dtype)
    return int(bits[0]) if bits else 8


def _trips(line: str, bodies: dict[str, list[str]]) -> int:
    """How often the loop runs that stands in a line: as is noted, or as it counts from 0."""
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
    """What a loop's body adds to the counter at a place of its tuple; a TPU's is unrolled."""
    results = re.search(r"ROOT .* tuple\(([^)]*)\)", body)
    names = re.findall(r"%([\w.\-]+)", results[1]) if results else []
    if place < len(names) and (
        added := re.search(rf"%{re.escape(names[place])} = .* add\(\S+, %([\w.\-]+)\)", body)
    ):
        return int(dict(_CONSTANT.findall(body)).get(added[1], 1))
    return 1
