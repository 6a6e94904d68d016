"""The tables of measured figures, one function per table, from the files in docs/data."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from docs.hooks.data_files import Data, load
from docs.hooks.tables import markdown_table

Row = dict[str, Any]
_NAMES = {"ctranslate2": "CTranslate2", "torch": "PyTorch"}


def generation() -> str:
    """Return the figures of generation, ours and those of two other programs."""
    data = load("generation")
    rows = [
        (label, *(_against(systems.get(peer)) for peer in ("ours", "transformers", "CTranslate2")))
        for label, systems in _workloads(data)
    ]
    return _table(("", "ours", "transformers", "CTranslate2"), rows, data)


def training() -> str:
    """Return the figures of training, ours and PyTorch's: speed, first step, memory."""
    data = load("training")
    peers = "ours", "torch eager", "torch compiled"
    rows: list[Sequence[str]] = []
    for label, systems in _workloads(data):
        dtype, figures = systems["ours"]["system"], [systems[name] for name in peers]
        rows += [
            (label, *map(_against, figures)),
            (f"first step, {dtype}, s", *map(_first_step, figures)),
            (f"peak memory, {dtype}, MiB", *(f"{row['mebibytes']:.0f}" for row in figures)),
        ]
    return _table(("", "ours", "PyTorch eager", "PyTorch compiled"), rows, data)


def how_fast() -> str:
    """Return the four rows of the README: one peer each, CTranslate2 or the faster PyTorch."""
    generation, training = load("generation"), load("training")
    rows = [
        (words, _number(our["median"]), f"{_number(peer['median'])}, {name}", _times(peer["ratio"]))
        for words, our, name, peer in _highlights(generation, training)
    ]
    where = dict.fromkeys(f"{data['machine']}; {data['date']}" for data in (generation, training))
    table = markdown_table(("", "ours", "peer", "ratio"), rows, align="---|--:|---|--:")
    return f"{table}\n\n*{', and '.join(where)}.*"


def engines() -> str:
    """Return the time per step of each form of the weights."""
    data = load("engines")
    sizes = {row["weights"]: f"{row['mebibytes']:.0f} MiB" for row in data["rows"]}
    cells = {(row["weights"], row["rows"]): row for row in data["rows"]}
    counts = sorted({count for _, count in cells})
    times = {key: f"{row['ms']:.1f}; {_times(row['ratio'])}" for key, row in cells.items()}
    rows = [(name, size, *(times[name, n] for n in counts)) for name, size in sizes.items()]
    head = "weights", "memory", *(f"{n} row{'s' * (n > 1)}" for n in counts)
    return _table(head, rows, data, align="|".join(["---", *["--:"] * (len(head) - 1)]))


def components() -> str:
    """Return the difference between each component and its PyTorch twin."""
    data = load("components")
    rows = [
        (
            row["component"],
            f"`{row['ours']}`",
            *(_pair(row[kind]) for kind in ("float32", "float64")),
        )
        for row in data["rows"]
    ]
    head = "course component", "ours", "float32: output, gradients", "float64: output, gradients"
    return _table(head, rows, data)


def tpu_batches() -> str:
    """Return the largest batches on slices of TPUs."""
    return _batches(load("tpu_batches"))


def gpu_batches() -> str:
    """Return the largest batches in training on GPUs."""
    return _batches(load("gpu_batches"))


def slices() -> str:
    """Return the largest number of rows in training on each slice, and the bound on a step."""
    data = load("tpu_batches")
    found: dict[str, dict[str, str]] = {}
    for row in data["rows"]:
        if row["program"] == "train":
            cell = f"{row['rows']:,}; {row['ms']:,.0f}"
            found.setdefault(row["model"], {})[row["chips"].split(":")[1]] = cell
    head = list(next(iter(found.values())))
    rows = [(model, *(cells[name] for name in head)) for model, cells in found.items()]
    return _table(("", *head), rows, data)


def gpu_tokens() -> str:
    """Return the commands that generate one token on a GPU, and its bounds."""
    data = load("gpu_tokens")
    rows = [
        (
            *(row["model"], row["chips"]),
            *(" / ".join(map(str, row[name])) for name in ("commands", "graphs", "returns")),
            "{:.2f} to {:.2f}".format(*row["launches_ms"]),
            *(f"{row['memory_ms']:.3f}", row["bound"]),
        )
        for row in data["rows"]
    ]
    head = "model", "GPU", "commands", "graphs", "returns", "launches, ms", "memory, ms", "bound"
    return _table(head, rows, data)


def releases() -> str:
    """Return the figures of each release, the newest first."""
    rows = load("releases", facts=())["rows"][::-1]
    head = "version", "date", "machine", *rows[0]["figures"]

    def cells(row: Row) -> list[str]:
        measured = (row["figures"][name] for name in head[3:])
        figures = (f"{_number(a)} ({_times(b)})" for a, b in measured)
        return [*(row[name] for name in head[:3]), *figures]

    return markdown_table(head, map(cells, rows))


def release(generation: Data, training: Data) -> Row:
    """Return the row of `releases` for the version that was measured last.

    Raises:
        ValueError: if generation and training were measured with different versions, or on
            different machines.
    """
    ours = [data["versions"]["obscura_jax"] for data in (generation, training)]
    for first, other in (ours, [data["machine"] for data in (generation, training)]):
        if first != other:
            raise ValueError(
                f"generation was measured with {first}, training with {other}; measure both again"
            )
    facts = {name: generation[name] for name in ("date", "machine")}
    found = {
        words: [our["median"], peer["ratio"]]
        for words, our, _, peer in _highlights(generation, training)
    }
    return {"version": ours[0], **facts, "figures": found}


def _highlights(generation: Data, training: Data) -> Iterator[tuple[str, Row, str, Row]]:
    """Yield four rows in float32: what was done, our figures, the peer's name and its figures."""
    done = dict(_workloads(generation))
    for words, label in {
        "read 512 tokens, tokens/s": "prefill, 512 tokens, float32, tokens/s",
        "generate, 1 row, ms per token": "decode, 1 row, float32, ms/step",
        "generate, 8 rows, ms per step": "decode, 8 rows, float32, ms/step",
    }.items():
        yield words, done[label]["ours"], "CTranslate2", done[label]["CTranslate2"]
    (systems,) = (systems for label, systems in _workloads(training) if "float32" in label)
    fastest = max(("torch eager", "torch compiled"), key=lambda name: systems[name]["median"])
    yield "train, tokens/s", systems["ours"], "PyTorch", systems[fastest]


def _workloads(data: Data) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the label of each workload and number type, and the figures of each system."""
    found: dict[str, dict[str, Row]] = {}
    for row in data["rows"]:
        *peer, dtype = row["system"].split()
        systems = found.setdefault(f"{row['name']}, {dtype}, {row['unit']}", {})
        systems[" ".join(peer) or "ours"] = row
    yield from found.items()


def _against(row: Row | None) -> str:
    """Return a figure, and for another program how many times as fast ours is."""
    if row is None:
        return ""
    return _number(row["median"]) + (f" ({_times(row['ratio'])})" if "ratio" in row else "")


def _first_step(row: Row) -> str:
    return _number(row["compile_seconds"] + row["tokens"] / row["median"])


def _batches(data: Data) -> str:
    head = "model", "chips", "program", "mesh", "rows", "arguments, GiB", "peak, GiB", "TFLOP"
    rows = [
        (
            *(row["model"], row["chips"], row["program"], row["mesh"], str(row["rows"])),
            *(f"{row['arguments_gib']:.2f}", f"{row['peak_gib']:.1f}", f"{row['tflop']:g}"),
            *(f"{row['sent_gib']:.2g}", f"{row['ms']:.4g}, {row['bound']}"),
        )
        for row in data["rows"]
    ]
    return _table((*head, "sent, GiB", "ms at best"), rows, data)


def _pair(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.1e}" for value in values)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}x"


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], data: Data, align: str = "") -> str:
    """Return a table in Markdown, and below it how, when and on what its figures were measured."""
    named = ", ".join(f"{_NAMES.get(k, k)} {v}" for k, v in data["versions"].items())
    facts = f"*`{data['command']}`; {data['machine']}; {data['date']}; {named}.*"
    return f"{markdown_table(head, rows, align)}\n\n{facts}"


TABLES: dict[str, Callable[[], str]] = {
    "generation": generation,
    "training": training,
    "how fast": how_fast,
    "engines": engines,
    "components": components,
    "TPU batches": tpu_batches,
    "TPU slices": slices,
    "GPU batches": gpu_batches,
    "GPU tokens": gpu_tokens,
    "releases": releases,
}
