"""What `obscura train` shows: a bar on a terminal, a line every ten steps elsewhere."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast


class Display:
    """Shows the rows of the metrics; used as a context, which ends the bar."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self._steps = steps
        self._console = Console(file=cast(TextIO, Expendable(sys.stdout)), highlight=False)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeLeft())
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Show a row."""
        done = row["step"] + 1
        if "val_loss" in row:
            self._print(f"step {done}: validation loss {row['val_loss']:.4f}")
            if row.get("sample"):
                self._print(f"  {row['sample']!r}")
            return
        text = f"loss {row['loss']:.4f}, {row['tokens_per_second']:.0f} tokens/s"
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, description=text)
        elif done % 10 == 0:
            self._print(f"step {done}: {text}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
        self._console.file.flush()


def show_reading(done: int, total: int) -> None:
    """Show how much of a text has become tokens, in bytes; a small text needs no such line."""
    if total > 1 << 23:
        say(f"tokens: {done / total:.0%} of {total / 2**20:.0f} MiB of text", sys.stdout)


def say(line: str, stream: TextIO | None) -> None:
    """Print a line to standard output or error, which may be closed or broken."""
    print(line, file=Expendable(stream), flush=True)


class Expendable(io.TextIOBase):
    """A stream that drops text instead of raising errors: a run outlives its terminal or pipe."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`, which is None if the process began without it."""
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the encoding of the stream, by which rich chooses the characters of a bar."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return bool(self._try(lambda stream: stream.isatty()))

    def write(self, text: str, /) -> int:
        """Write `text` if the stream takes it."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if it takes it."""
        self._try(lambda stream: stream.flush())

    def _try(self, call: Callable[[TextIO], object]) -> object:
        if self._stream is not None:
            try:
                return call(self._stream)
            except (OSError, ValueError):  # ValueError: it was closed in this process
                # The buffer keeps the text; a flush at exit would fail again.
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), self._stream.fileno())
                self._stream = None
        return None
