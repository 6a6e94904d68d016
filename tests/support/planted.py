"""Compare a pair of programs of `tests/pairs`, as it is or with a planted fault."""

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import jax
import torch

from obscura_jax.parity.compare_programs import compare
from obscura_jax.parity.findings import Finding, Report
from obscura_jax.parity.program import jax_program, torch_program
from obscura_jax.parity.sources import line_of
from tests.pairs.fault import Fault
from tests.pairs.faults_attention import FAULTS as ATTENTION
from tests.pairs.faults_other import FAULTS as OTHER

FOLDER = Path(__file__).parents[1] / "pairs"
PAIRS = (
    *("rotary", "vision", "translate", "experts", "recurrent"),
    *("statespace", "convolution", "audio", "bert"),
)
FAULTS = (*ATTENTION, *OTHER)


@dataclass(frozen=True)
class Outcome:
    """The result of a comparison with a planted fault.

    Attributes:
        report: the report.
        found: whether it says that the programs differ.
        torch: whether the first place in PyTorch is right.
        jax: whether the first place in JAX is right.
        mend: the kind of the first finding's mend, or "".
    """

    report: Report
    found: bool
    torch: bool
    jax: bool
    mend: str


def programs(pair: str, seed: int = 0, jax_side: ModuleType | None = None) -> tuple:
    """Return the PyTorch program and the JAX program of a pair."""
    torch_side = importlib.import_module(f"tests.pairs.{pair}_torch")
    return built(torch_side, jax_side or importlib.import_module(f"tests.pairs.{pair}_jax"), seed)


def built(torch_side: ModuleType, jax_side: ModuleType, seed: int = 0) -> tuple:
    """Return the PyTorch program and the JAX program of two modules with the same weights."""
    with jax.numpy_rank_promotion("allow"):
        module, inputs = torch_side.build(seed)
        state = {name: value.numpy() for name, value in module.state_dict().items()}
        given = [x.numpy() if isinstance(x, torch.Tensor) else x for x in inputs]
        call, args = jax_side.build(state, given)
    return torch_program(module, *inputs), jax_program(call, *args)


def compared(pair: str, seed: int = 0, jax_side: ModuleType | None = None, **options) -> Report:
    """Return the report on a pair."""
    with jax.numpy_rank_promotion("allow"):
        return compare(*programs(pair, seed, jax_side), **options)


def outcome(fault: Fault, seed: int = 0) -> Outcome:
    """Plant a fault, compare, and check what the report says first."""
    with planted(fault) as (module, line):
        report = compared(fault.pair, seed, module, gradients=False)
        differs = report.exit_code == 1
        finding = next((f for f in report.findings if f.kind != "constant"), None)
        if finding is None:
            return Outcome(report, differs, False, False, "")
        mend = finding.mend.kind if finding.mend else ""
        theirs = _torch_place(fault, finding)
        ours = theirs if fault.loading else finding.jax is not None and _is(finding.jax, line)
        return Outcome(report, differs, theirs, ours, mend)


def _is(place, line: int) -> bool:
    return place.source is not None and place.source.line == line


def _torch_place(fault: Fault, finding: Finding) -> bool:
    if fault.loading:
        return fault.torch_line in " ".join((*finding.torch_only, *finding.shared))
    lines = (fault.torch_line,) if isinstance(fault.torch_line, str) else fault.torch_line
    source = finding.torch.source if finding.torch else None
    return source is not None and any(_holds(source, line) for line in lines)


def _holds(source, line: str) -> bool:
    """Return True if a source has a line, which may begin with the name of its file."""
    file, separator, text = line.partition(".py: ")
    if separator:
        return source.file.endswith(f"{file}.py") and text in line_of(source)
    return line in line_of(source)


@contextmanager
def planted(fault: Fault) -> Iterator[tuple[ModuleType, int]]:
    """Context manager: the JAX module with the fault, and the number of the changed line."""
    text = (FOLDER / f"{fault.pair}_jax.py").read_text(encoding="utf-8")
    with changed(f"{fault.pair}_jax", ((fault.old, fault.new),)) as module:
        yield module, text[: text.index(fault.old)].count("\n") + 1


@contextmanager
def changed(name: str, changes: tuple[tuple[str, str], ...]) -> Iterator[ModuleType]:
    """Context manager: a module of a pair with changes, each of a text that occurs once."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    for old, new in changes:
        assert text.count(old) == 1, f"{name}: the text is not there once: {old}"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"planted_{name}", path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        try:
            spec.loader.exec_module(module)
            yield module
        finally:
            del sys.modules[spec.name]
