"""Handling of Ctrl-C and SIGTERM: exit quietly, at once or after the current training step.

KeyboardInterrupt is not enough: it prints a traceback while modules are imported, is lost if it is
raised inside JAX's garbage-collection callback, and waits until a compiled program returns. Here a
signal wakes a separate thread, whatever the main thread is doing.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from obscura_jax.atomic_files import remove_temporary_paths

_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class _State:
    """Settings that decide the effect of the next signal."""

    deferred = False  # the next signal only requests a stop
    asked = 0  # the signal that requested a stop, or 0
    last_words = b""  # written to standard output before the process ends


def install() -> None:
    """End this process with exit code 128 + number on SIGINT, SIGTERM or SIGHUP.

    Signals that the parent process ignores stay ignored. Call this in the main thread, before slow
    imports.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # the thread acts on the signal
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()


@contextmanager
def deferred() -> Iterator[Callable[[], int]]:
    """Context manager: let the first signal only request a stop; a second one exits at once.

    Yields a function that returns the number of the signal that requested the stop, or 0.
    """
    _State.deferred = True
    try:
        yield lambda: _State.asked
    finally:
        _State.deferred = False


@contextmanager
def last_words(text: str) -> Iterator[None]:
    """Context manager: write `text` to standard output if a signal ends the process inside."""
    _State.last_words = text.encode()
    try:
        yield
    finally:
        _State.last_words = b""


def _watch(reader: int) -> None:
    while True:
        (number,) = os.read(reader, 1)
        if number not in _SIGNALS:
            continue
        if _State.deferred and not _State.asked:
            _State.asked = number
            with suppress(OSError, ValueError):
                print(
                    "stopping after this step; press Ctrl-C again to stop now",
                    file=sys.stderr,
                    flush=True,
                )
        else:
            _end(number)


def _end(number: int) -> None:
    remove_temporary_paths()
    with suppress(OSError):
        os.write(1, _State.last_words)
    os._exit(128 + number)
