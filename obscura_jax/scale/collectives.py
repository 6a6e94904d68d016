"""Communication between devices in a compiled program, read from its HLO text.

The text has no stable grammar. These regular expressions were written for XLA:CPU of jaxlib 0.10.2
and XLA:TPU of libtpu 0.0.42; later versions may need others.
"""

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
        group: number of devices that communicate with each other.
    """

    kind: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    group: int

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
    devices = _DEVICES.search(hlo)
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
            kind, group = match[2], _group(line) or (int(devices[1]) if devices else 1)
            if name.startswith(_SCATTER):
                kind, arrays = "reduce-scatter", _arrays(re.sub(r" [\w-]+\(.*", "", lines[-1]))
            found.append(Collective(kind, arrays, times[name], group))
    return found


def _arrays(text: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the type and shape of each array in an HLO result type."""
    return tuple(
        (dtype, tuple(int(n) for n in dims.split(",") if n)) for dtype, dims in _ARRAY.findall(text)
    )


def _group(line: str) -> int | None:
    """Return the devices per group, from XLA's three notations; None means all devices."""
    groups = _GROUPS.search(line)
    if not groups:
        return None
    if tiled := re.match(r"\[\d+,(\d+)\]", groups[1]):  # [groups, devices per group]<=...
        return int(tiled[1])
    if axes := re.match(r"mesh\[([^]]*)\].*\{(.*)\}", groups[1]):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes[1]))
        split = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", axes[2])  # an axis or a part of one
        return math.prod(int(part or sizes[axis]) for axis, part in split)
    first = re.match(r"\{\{([\d,]+)\}", groups[1])
    return len(first[1].split(",")) if first else None


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
