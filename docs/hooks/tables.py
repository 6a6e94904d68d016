"""Tables of the reference, from the package's own data: chips, dialects, keys of JSON reports."""

import inspect
from collections.abc import Iterable, Sequence

from obscura_jax.interop import name_tables
from obscura_jax.parity import report
from obscura_jax.parity.gpt import report as gpt
from obscura_jax.scale.nvidia import GPUS
from obscura_jax.scale.roofline import CHIPS


def tpus() -> str:
    """Return the figures of the TPUs that `obscura compile` knows."""
    rows = [
        (name, _tera(chip.flops), _giga(chip.bandwidth), _gib(chip.memory), _giga(chip.network))
        for name, chip in CHIPS.items()
    ]
    return markdown_table(("chip", "TFLOP/s", "memory, GB/s", "memory, GiB", "network, GB/s"), rows)


def gpus() -> str:
    """Return the figures of the GPUs that `obscura compile` knows."""
    head = "kind", "name", "TFLOP/s", "memory, GB/s", "memory, GB", "link, GB/s", "adapter, GB/s"
    rows = [
        (
            *(kind, gpu.name, _tera(gpu.flops), _giga(gpu.bandwidth), _giga(gpu.memory)),
            *(_giga(gpu.link), _giga(gpu.adapter), "{}.{}".format(*gpu.capability)),
        )
        for kind, gpu in GPUS.items()
    ]
    return markdown_table((*head, "compute capability"), rows)


def dialects() -> str:
    """Return the name of every tensor in each dialect."""
    tables = (name_tables.HUGGING_FACE, name_tables.NANOGPT, name_tables.FLAX)
    names = [
        {target: _name(row) for row in table.rows for target in row.targets} for table in tables
    ]
    rows = [
        (f"`{row.native}`", *(one[row.native] for one in names)) for row in name_tables.COURSE.rows
    ]
    return markdown_table(("course", "Hugging Face", "nanoGPT", "Flax"), rows)


def program_report() -> str:
    """Return the keys of the report of two programs."""
    return _documented(report.SCHEMA, report.as_json)


def gpt_report() -> str:
    """Return the keys of the report of two GPTs."""
    return _documented(gpt.SCHEMA, gpt.as_json)


def _name(row: name_tables.Row) -> str:
    return f"`{row.foreign}`" + ", transposed" * row.transposed


def _documented(schema: str, function: object) -> str:
    """Return the description of a JSON object: what the function's docstring says of its keys."""
    text = inspect.getdoc(function) or ""
    return f"The schema is `{schema}`.\n\n```text\n{text[text.index('Keys:') :].rstrip()}\n```"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "") -> str:
    """Return a table in Markdown; `align` aligns its columns, as in "---|--:"; default: left."""
    lines = ["| " + " | ".join(line) + " |" for line in (head, *rows)]
    lines.insert(1, f"|{align or '|'.join(['---'] * len(head))}|")
    return "\n".join(lines)


def _tera(number: float) -> str:
    return f"{number / 1e12:g}"


def _giga(number: float) -> str:
    return f"{number / 1e9:g}"


def _gib(number: float) -> str:
    return f"{number / 2**30:g}"
