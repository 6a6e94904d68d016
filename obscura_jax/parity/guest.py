"""Run a user's code so that its errors become one line and its global settings stay its own."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from obscura_jax.parity.outputs import OutputError


class GuestError(ValueError):
    """A user's program failed; the message names it."""


class Guest:
    """A user's program: `with guest("does not build"):` runs code of its file.

    Each block begins with PyTorch's default settings, and with the working directory and the module
    search path that the program last left; at its end all are what they were before. What the
    program prints goes to standard error, since standard output has the report.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self.search_path, self._folder = list(sys.path), Path.cwd()

    @contextmanager
    def __call__(self, failure: str, at_exit: str = "") -> Iterator[None]:
        """Run the block.

        Args:
            failure: how to say that the block raised, such as "does not build".
            at_exit: the same for a SystemExit; by default `failure`.

        Raises:
            GuestError: "LABEL FAILURE: error", for whatever the block raises but Ctrl-C.
        """
        search_path, folder = list(sys.path), Path.cwd()
        sys.path[:] = self.search_path
        os.chdir(self._folder)
        try:
            with _standard_settings(), redirect_stdout(sys.stderr):
                yield
        except GuestError:  # of a block inside this one
            raise
        except BaseException as error:  # a SystemExit, too: exit code 0 would say "equal"
            if isinstance(error, KeyboardInterrupt) and _raised_by_signals():
                raise
            if isinstance(error, SystemExit) and at_exit:
                failure = at_exit
            raise GuestError(f"{self.label} {failure}: {said(error)}") from error
        finally:
            self.search_path, self._folder = list(sys.path), Path.cwd()
            sys.path[:] = search_path
            os.chdir(folder)


def said(error: BaseException) -> str:
    """Return the type of an error and its message, if it has one."""
    if isinstance(error, OutputError):  # ours, and a sentence already
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _raised_by_signals() -> bool:
    """Tell whether Ctrl-C raises KeyboardInterrupt in this process, as the command's does not."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def _standard_settings() -> Iterator[None]:
    """Set what PyTorch has at its start, and afterwards what it had before."""
    import torch

    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    precision = torch.get_float32_matmul_precision()
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_device(None if device.type == "cpu" else device)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
