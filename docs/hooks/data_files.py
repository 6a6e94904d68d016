"""Files of measured figures, docs/data/NAME.json: tools write them, pages show tables of them."""

import argparse
import datetime
import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import obscura_jax
from obscura_jax.atomic_files import replace_text
from obscura_jax.processor import CPUINFO, core_count, processor_fields, processor_name

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "docs" / "data"
FACTS = ("command", "machine", "date", "versions")

Data = dict[str, Any]

# The model name of an AMD EPYC does not give its generation, but its family and model do.
_GENERATIONS = {
    ("25", 0): "Zen 3",
    ("25", 1): "Zen 4",
    ("25", 10): "Zen 4",
    ("26", 0): "Zen 5",
    ("26", 1): "Zen 5",
}


def add_save_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--save`, whose value is the folder to save figures in, or None."""
    meaning = "folder to save the figures in; with no name: docs/data, which `make tables` reads"
    parser.add_argument(
        "--save",
        type=lambda name: Path(name).resolve(),
        nargs="?",
        const=DATA,
        metavar="FOLDER",
        help=meaning,
    )


def saved_command(
    parser: argparse.ArgumentParser, folder: Path | None, expected: Sequence[str] = ()
) -> str:
    """Return the command that is run, without `--save`, and make the folder.

    End the program if figures in docs/data would be replaced by those of other settings.

    Args:
        parser: the parser of the arguments.
        folder: the value of `--save`.
        expected: the arguments of the command whose figures are in docs/data.
    """
    save_alone = argparse.ArgumentParser(add_help=False)
    add_save_option(save_alone)
    words = save_alone.parse_known_args()[1]
    if folder == DATA and words != [*expected]:
        parser.error("docs/data has figures of the default settings; name a folder after --save")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return shlex.join(["python", f"tools/{Path(sys.argv[0]).name}", *words])


def save(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    command: str,
    packages: Sequence[str] = (),
    machine: str | None = None,
) -> None:
    """Write figures and the facts that they depend on.

    Args:
        path: the file.
        rows: one object per row of figures.
        command: the command that measures them.
        packages: the packages whose versions matter, besides this one and JAX.
        machine: the machine that was used; default: this one.
    """
    # The version of an installed clone may be that of an older commit.
    versions = {"obscura_jax": obscura_jax.__version__}
    versions |= {name: version(name) for name in ("jax", *packages)}
    data = {
        "command": command,
        "machine": machine or this_machine(),
        "date": datetime.date.today().isoformat(),
        "versions": {name: each.partition("+")[0] for name, each in versions.items()},
    }
    write(path, {**data, "rows": rows})


def write(path: Path, data: Data) -> None:
    """Write a file of data, with one line per row."""
    head = json.dumps({**data, "rows": []}, indent=1).removesuffix("[]\n}")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in data["rows"])
    replace_text(path, f"{head}[\n{rows}\n ]\n}}\n")


def load(name: str, folder: Path = DATA, *, facts: Sequence[str] = FACTS) -> Data:
    """Return the content of the file NAME.json in a folder.

    Raises:
        ValueError: if it has no rows, lacks a fact, or its date is not like 2026-11-30.
    """
    data: Data = json.loads((folder / f"{name}.json").read_text("utf-8"))
    for fact in (*facts, "rows"):
        if not data.get(fact):
            raise ValueError(f"{name}.json lacks {fact}; measure again to write it")
    if "date" in facts and not re.fullmatch(r"\d{4}-\d\d-\d\d", data["date"]):
        raise ValueError(
            f"{name}.json has the date {data['date']!r}; write year, month, day, as in 2026-11-30"
        )
    return data


def this_machine(cpuinfo: Path = CPUINFO) -> str:
    """Return the name of the processor, its generation if known, and the number of cores."""
    fields = processor_fields(cpuinfo)
    family, model = fields.get("cpu family", ""), fields.get("model", "")
    generation = _GENERATIONS.get((family, int(model) // 16)) if model.isdigit() else None
    name = processor_name(cpuinfo) + (f" ({generation})" if generation else "")
    return f"{name}, {core_count()} cores"


def significant(value: float, digits: int = 4) -> float:
    """Return a value rounded to a number of significant digits."""
    return float(f"{value:.{digits}g}")
