"""The content of a recording: a trace as arrays, one of which holds JSON.

A fingerprint that several nodes share is stored once. Raise `FORMAT` if this file changes, or if
`fingerprint` computes other numbers.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from obscura_jax.parity.fingerprint import Fingerprint, fingerprint
from obscura_jax.parity.sources import line_of
from obscura_jax.parity.trace import Node, Source, Trace

Arrays = dict[str, NDArray[Any]]
FORMAT = "1"
_KINDS = ("numbers", "constant", "two", "empty")
_MOMENTS = len(fingerprint(np.zeros(0)).moments)


def packed(trace: Trace, values: Mapping[int, NDArray[Any]], **about: Any) -> Arrays:
    """Return a trace as arrays.

    Args:
        trace: the trace, whose `kept` is not stored.
        values: the values of nodes to store.
        about: further content, of types that JSON has.
    """
    sources = dict.fromkeys(node.source for node in trace.nodes if node.source is not None)
    places = {source: n for n, source in enumerate(sources)}
    content = {
        "about": about,
        "side": trace.side,
        "sources": [[s.file, s.line, s.function, line_of(s)] for s in sources],
        "nodes": [_row(node, places) for node in trace.nodes],
        "outputs": trace.outputs,
        "labels": trace.labels,
        "inputs": trace.inputs,
        "parameters": trace.parameters,
        "random": trace.random,
    }
    text = json.dumps(content, separators=(",", ":")).encode()
    found = _packed_prints(trace.nodes) | {"content": np.frombuffer(text, np.uint8)}
    found |= {f"native.{n}": x for n, x in enumerate(trace.native)}
    found |= {f"value.{i}": x for i, x in values.items()}
    # Large types first, so that all arrays are aligned.
    return dict(sorted(found.items(), key=lambda item: -item[1].itemsize))


def unpacked(arrays: Arrays) -> tuple[Trace, dict[str, Any]]:
    """Return the trace that `packed` stored, and its further content.

    Raises:
        KeyError, IndexError, TypeError, ValueError: if the content is damaged.
    """
    content = json.loads(arrays["content"].tobytes())
    sources = [Source(*row) for row in content["sources"]]
    prints = _unpacked_prints(arrays)
    nodes = []
    for i, (row, place) in enumerate(zip(content["nodes"], arrays["prints"], strict=True)):
        node = replace(_node(i, row, sources), print=prints[place] if place >= 0 else None)
        nodes.append(node)
    trace = Trace(
        content["side"],
        nodes,
        content["outputs"],
        content["labels"],
        content["inputs"],
        content["parameters"],
        random=content["random"],
        kept={
            int(name.removeprefix("value.")): x
            for name, x in arrays.items()
            if name.startswith("value.")
        },
        native=[arrays[f"native.{n}"] for n in range(len(content["outputs"]))],
    )
    _check(trace)
    return trace, content["about"]


def _check(trace: Trace) -> None:
    """Raise ValueError if a trace refers to nodes that it does not have."""
    known = range(len(trace.nodes))
    earlier = all(0 <= i < node.index for node in trace.nodes for i in node.inputs)
    others = [*trace.outputs, *trace.inputs, *trace.parameters, *trace.random, *trace.kept]
    complete = set(trace.outputs) <= trace.kept.keys() and len(trace.labels) == len(trace.outputs)
    if not (earlier and complete and all(i in known for i in others)):
        raise ValueError("some values are missing")


def _row(node: Node, places: Mapping[Source, int]) -> list[Any]:
    return [
        node.op,
        node.inputs,
        node.shape,
        node.dtype,
        -1 if node.source is None else places[node.source],
        node.path,
        node.name,
        node.layout,
        node.permutes,
        node.fused,
        node.numbers,
        node.lowered,
    ]


def _node(index: int, row: list[Any], sources: list[Source]) -> Node:
    op, inputs, shape, dtype, place, path, name, layout, permutes, fused, numbers, lowered = row
    return Node(
        index,
        op,
        tuple(inputs),
        tuple(shape),
        dtype,
        None if place < 0 else sources[place],
        path,
        name,
        layout,
        permutes,
        fused,
        tuple(numbers),
        lowered,
    )


def _packed_prints(nodes: Iterable[Node]) -> Arrays:
    """Return all fingerprints, and for each node the number of its own, or -1."""
    prints: list[Fingerprint] = []
    numbers: dict[int, int] = {}
    rows = []
    for node in nodes:
        if node.print is not None and id(node.print) not in numbers:
            numbers[id(node.print)] = len(prints)
            prints.append(node.print)
        rows.append(-1 if node.print is None else numbers[id(node.print)])
    none = np.zeros(0)
    ordered = [none if p.ordered is None else p.ordered for p in prints]
    return {
        "prints": np.array(rows, np.int64),
        "print.kind": np.array([_KINDS.index(p.kind) for p in prints], np.int64),
        "print.count": np.array([p.count for p in prints], np.int64),
        "print.nan": np.array([p.nan for p in prints], np.int64),
        "print.infinite": np.array([p.infinite for p in prints], np.int64),
        "print.rms": np.array([p.rms for p in prints], np.float64),
        "print.value": np.array([p.value for p in prints], np.float64),
        "print.moments": np.array([p.moments for p in prints]).reshape(-1, _MOMENTS),
        "print.ordered": np.concatenate([none, *ordered]),
        "print.ends": np.cumsum([len(x) for x in ordered], dtype=np.int64),
    }


def _unpacked_prints(arrays: Arrays) -> list[Fingerprint]:
    columns = ("kind", "count", "rms", "moments", "nan", "infinite", "value", "ends")
    found, start = [], 0
    for row in zip(*(arrays[f"print.{name}"] for name in columns), strict=True):
        kind, count, rms, moments, nan, infinite, value, end = row
        ordered = arrays["print.ordered"][start:end] if end > start else None
        start = end
        found.append(
            Fingerprint(
                _KINDS[kind],
                int(count),
                float(rms),
                moments,
                int(nan),
                int(infinite),
                float(value),
                ordered,
            )
        )
    return found
