"""Progress of a training run: a bar on a terminal, or else a line every ten steps."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO, cast


class Display:
    """A context manager and function that shows rows of metrics on standard output."""

    def __init__(self, steps: int) -> None:
        """Prepare a progress bar for a run of `steps` steps."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self._steps = steps
        self._console = Console(file=cast(TextIO, ExpendableStream(sys.stdout)), highlight=False)
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
        """Show one row."""
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


def show_tokenizing(done: int, total: int) -> None:
    """Print how many bytes of a text have been tokenized, unless the text is small."""
    if total > 1 << 23:
        print_line(f"tokens: {done / total:.0%} of {total / 2**20:.0f} MiB of text", sys.stdout)


def print_line(line: str, stream: TextIO | None) -> None:
    """Print a line to standard output or error; do nothing if it is closed or broken."""
    print(line, file=ExpendableStream(stream), flush=True)


class ExpendableStream(io.TextIOBase):
    """A stream that drops text instead of raising errors, so that a run outlives its terminal."""

    def __init__(self, stream: TextIO | None) -> None:
        """Write to `stream`, which is None if the process was started without it."""
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Return the stream's encoding; rich chooses the characters of the bar by it."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return bool(self._try(lambda stream: stream.isatty()))

    def write(self, text: str, /) -> int:
        """Write `text` if the stream accepts it."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream if possible."""
        self._try(lambda stream: stream.flush())

    def _try(self, call: Callable[[TextIO], object]) -> object:
        if self._stream is not None:
            try:
                return call(self._stream)
            except (OSError, ValueError):  # ValueError: it was closed in this process
                # The text is still in the buffer; a flush at exit would fail again.
                with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), self._stream.fileno())
                self._stream = None
        return None
