"""`obscura COMMAND ...`: run a command, and report a user's mistakes in one line."""

import argparse
import io
import logging
import os
import sys
from typing import Any, NoReturn

from obscura_jax import __version__
from obscura_jax.cli import bench, compile, convert, export, generate, info, look, parity, train
from obscura_jax.extras import require
from obscura_jax.scale import libtpu
from obscura_jax.scale.cpu_devices import add_threads_for_cpu_devices


class _OneLineParser(argparse.ArgumentParser):
    _splitting = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse a command's arguments, with options between them, unless one of them is `--`.

        By default, argparse takes all arguments at once, and rejects those after the next option.
        """
        words = sys.argv[1:] if args is None else [*args]
        if self._subparsers is not None or self._splitting:
            return super().parse_known_args(words, namespace)
        self._splitting = True  # the method for options between calls this one for both parts
        parse = super().parse_known_args if "--" in words else self.parse_known_intermixed_args
        try:
            found, unknown = parse(words, namespace)
        finally:
            self._splitting = False
        if unknown:  # here, so that the error names the help of the command
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line, with one subparser per command."""
    parser = _OneLineParser(prog="obscura", description="GPT-2 from scratch in JAX.")
    parser.add_argument("--version", action="version", version=f"obscura_jax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in (generate, train, convert, export, compile, parity, look, info, bench):
        command.add_parser(commands)
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run one command. Exit with code 0, or with code 2 after one line on standard error."""
    # JAX and libtpu warn on standard error about missing accelerators; we keep it for errors.
    libtpu.silence_if_no_tpu()
    add_threads_for_cpu_devices()
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):  # characters that it cannot encode are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    parser = command_parser()
    try:
        if "_ARGCOMPLETE" in os.environ:  # a shell wants to know what can follow; this exits
            require("argcomplete", "completion", "shell completion").autocomplete(parser)
        try:
            args = parser.parse_args(argv)
            parser.prog = f"obscura {args.command}"
            given = {name for name, value in vars(args).items() if value}
            if given.isdisjoint(("distributed", "coordinator", "processes")):
                _check_platforms()  # starts JAX; several processes must connect before that
            args.run(args)
        finally:
            if sys.stdout is not None:  # it is None if the shell closed it
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe closed it, which is not an error
        _drop_output()
        sys.exit(0)
    except KeyboardInterrupt:
        sys.exit(130)
    except BaseException as error:
        message = _user_message(error)
        if message is None:
            raise
        _drop_output()
        parser.exit(2, f"{parser.prog}: {_one_line(message)}\n")


def _user_message(error: BaseException) -> str | None:
    """Return the message for an error that is not a fault of this package, or else None."""
    if isinstance(error, MemoryError):
        return str(error) or "not enough memory"
    if isinstance(error, ValueError | OSError):
        return str(error)
    if type(error).__module__ == "pyo3_runtime":  # a panic in Rust, such as a tokenizer's
        return f"a library failed on this input: {error}"
    if isinstance(error, RuntimeError):  # includes JAX's own errors; JAX may not be imported
        text = str(error)
        if text.startswith("RESOURCE_EXHAUSTED"):
            return f"not enough memory: {text}"
        if "Disallowed" in text and "transfer" in text:
            return "JAX_TRANSFER_GUARD forbids copies to and from devices; unset it"
    return None


def _check_platforms() -> None:
    """Raise ValueError if JAX_PLATFORMS names no platform that JAX finds here."""
    if platforms := os.environ.get("JAX_PLATFORMS"):
        import jax

        try:
            jax.devices()
        except (RuntimeError, AssertionError) as error:  # AssertionError: cuda without its plugin
            raise ValueError(
                f"JAX finds no device for JAX_PLATFORMS={platforms}; unset it, or set it to cpu"
            ) from error


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _drop_output() -> None:
    """Avoid "Exception ignored" messages at exit if standard output is closed or full."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
