"""Shared parts of the tools that compare programs: one process per program, and ratios."""

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from docs.hooks.data_files import significant
from obscura_jax.bench.measurements import Measurement

_System = TypeVar("_System", bound=Callable[..., Any])


class Elsewhere(Generic[_System]):
    """A function that runs in its own process, created there by `make(*args)`.

    In one process the threads of two libraries interfere: transformers' bfloat16 steps took 42 ms
    in a process with JAX, and 28 ms in their own.
    """

    def __init__(self, make: Callable[..., _System], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, args), daemon=True)
        self._process.start()
        other.close()

    def __call__(self, *args: Any) -> Any:
        """Call the function in its process."""
        self._pipe.send(args)
        return self._pipe.recv()

    def __enter__(self) -> "Elsewhere[_System]":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, make: Callable[..., Any], args: tuple[Any, ...]) -> None:
    system = make(*args)
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(system(*pipe.recv()))


def ratios(figures: list[Measurement]) -> list[dict[str, Any]]:
    """Return how many times as fast ours is as each peer, as the median over the rounds.

    Our systems are named after their number type, such as "float32"; the names of their peers end
    in it, such as "transformers float32".
    """
    found = []
    for mine in (figure for figure in figures if " " not in figure.system):
        for peer in (other for other in figures if other.system.endswith(f" {mine.system}")):
            pairs = zip(mine.values, peer.values, strict=True)
            faster = [a / b if mine.unit == "tokens/s" else b / a for a, b in pairs]
            names = {"name": mine.name, "system": mine.system, "peer": peer.system}
            found.append({**names, "ratio": statistics.median(faster)})
    return found


def show(ratios: list[dict[str, Any]]) -> None:
    """Print one line per ratio."""
    for ratio in ratios:
        print("{name:<28} {system:<9} / {peer:<24} {ratio:5.2f}x".format(**ratio))


def table(figures: Sequence[Measurement], found: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians, one workload per line, with each ratio after the peer's figure."""
    systems = list(dict.fromkeys(figure.system for figure in figures))
    ratio_of = _ratio_of(found)
    lines = [f"{'':<20} {'':<9}" + "".join(f"{system:>26}" for system in systems)]
    for name in dict.fromkeys(figure.name for figure in figures):
        row = [figure for figure in figures if figure.name == name]
        cells = [
            f"{_rounded(figure.median):>17} {_times(ratio_of.get((name, figure.system))):>8}"
            for figure in row
        ]
        lines.append(f"{name:<20} {row[0].unit:<9}" + "".join(cells))
    return "\n".join(lines)


def data_rows(
    figures: Sequence[Measurement], found: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the medians and ratios as rows of a file in docs/data."""
    ratio_of, rows = _ratio_of(found), []
    for figure in figures:
        row: dict[str, Any] = {"name": figure.name, "system": figure.system, "unit": figure.unit}
        row["median"] = significant(figure.median)
        row["compile_seconds"] = significant(figure.compile_seconds)
        if figure.mebibytes is not None:
            row["mebibytes"] = significant(figure.mebibytes)
        if (figure.name, figure.system) in ratio_of:
            row["ratio"] = significant(ratio_of[figure.name, figure.system])
        rows.append(row)
    return rows


def _ratio_of(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Return each ratio by the names of its workload and its peer."""
    return {(ratio["name"], ratio["peer"]): ratio["ratio"] for ratio in found}


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
