"""Run a user's code so that its errors become one line and its global settings stay inside."""

import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from obscura_jax.parity.sources import Frame, user_line

_LONGEST = 600  # characters of an error's message
_NEEDS_GPU = re.compile(r"\b(cuda|nvidia)\b", re.IGNORECASE)


class OutputError(ValueError):
    """A program returned something that cannot be compared; the message is a whole sentence."""


class GuestError(ValueError):
    """A user's program failed; the message names it."""


class Guest:
    """A user's program: `with guest("does not build"):` runs code of its file.

    Each block starts with PyTorch's default settings, and with the working directory and the module
    search path that the program's last block ended with. The end of a block restores all of them.
    The program prints to standard error, because standard output is for the report.

    Attributes:
        label: name of the program, with which its errors start.
        files: folder of the program's files, whose line is added to its errors; None: no line.
    """

    def __init__(self, label: str, files: Path | None = None) -> None:
        self.label, self.files = label, files
        self.search_path, self._folder = list(sys.path), Path.cwd()

    @contextmanager
    def __call__(
        self, failure: str | Callable[[BaseException], str | None], at_exit: str = ""
    ) -> Iterator[None]:
        """Run the block.

        Args:
            failure: a description of the failure if the block raises, such as "does not build"; or
                a function of the exception that returns one, or None if it is not the program's.
            at_exit: the same if it raises SystemExit; default: `failure`.

        Raises:
            GuestError: "LABEL FAILURE: error", for every exception except Ctrl-C.
        """
        search_path, folder = list(sys.path), Path.cwd()
        sys.path[:] = self.search_path
        os.chdir(self._folder)
        try:
            with _standard_settings(), redirect_stdout(sys.stderr):
                yield
        except GuestError:  # from a block inside this one
            raise
        except BaseException as error:  # also SystemExit: exit code 0 would mean "equal"
            if isinstance(error, KeyboardInterrupt) and _raised_by_signals():
                raise
            if isinstance(error, SystemExit) and at_exit:
                failure = at_exit
            words = failure if isinstance(failure, str) else failure(error)
            if words is None:
                raise
            raise GuestError(f"{self.label} {words}: {self._describe(error)}") from error
        finally:
            self.search_path, self._folder = list(sys.path), Path.cwd()
            sys.path[:] = search_path
            os.chdir(folder)

    def _describe(self, error: BaseException) -> str:
        text = describe_error(error)
        if len(text) > _LONGEST:  # PyTorch lists all names that a state dict lacks
            text = f"{text[:_LONGEST]} ..."
        if self.files is not None and not isinstance(error, SyntaxError):  # it names its own line
            frames = [
                Frame(frame.f_code.co_filename, line, frame.f_code.co_name)
                for frame, line in traceback.walk_tb(error.__traceback__)
            ]
            source = user_line(reversed(frames), self.files)
            text += f" ({source})" if source else ""
        advice = "; build the module on the CPU" if _NEEDS_GPU.search(str(error)) else ""
        return text + advice


def describe_error(error: BaseException) -> str:
    """Return the type of an error and its message, if it has one."""
    if isinstance(error, OutputError):  # our own error, already a sentence
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _raised_by_signals() -> bool:
    """Return True if Ctrl-C raises KeyboardInterrupt here; it does not in the command."""
    return signal.getsignal(signal.SIGINT) is signal.default_int_handler


@contextmanager
def _standard_settings() -> Iterator[None]:
    """Context manager: use PyTorch's default settings, and restore the current ones at the end."""
    try:
        import torch
    except ImportError:  # a JAX program needs none
        yield
        return
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
