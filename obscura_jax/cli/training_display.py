"""What `obscura train` shows: a bar on a terminal, a line every ten steps elsewhere."""

import sys
from collections.abc import Mapping
from typing import Any


class Display:
    """Shows the rows of the metrics; used as a context, which ends the bar."""

    def __init__(self, steps: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as TimeLeft

        self._steps = steps
        self._console = Console(file=sys.stdout, highlight=False)
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
        print(f"tokens: {done / total:.0%} of {total / 2**20:.0f} MiB of text", flush=True)
