"""`obscura COMMAND ...`: finds the command, and turns a user's mistakes into one line."""

import argparse
import logging
import os
import sys
from typing import NoReturn

from obscura_jax import __version__
from obscura_jax.cli import bench, compile, convert, export, generate, info, parity, train
from obscura_jax.scale import libtpu


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> None:
    """Run one command; exits 0, or 2 after one line on standard error that says what was wrong."""
    # Of a missing GPU or TPU jax and libtpu warn on standard error: ours is for what went wrong.
    libtpu.quiet()
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)
    parser = _OneLineParser(prog="obscura", description="A from-scratch GPT in JAX.")
    parser.add_argument("--version", action="version", version=f"obscura_jax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in (generate, train, convert, export, compile, parity, info, bench):
        command.add_to(commands)
    try:
        try:
            args = parser.parse_args(argv)
            parser.prog = f"obscura {args.command}"
            args.run(args)
        finally:
            if sys.stdout is not None:  # it is None where the shell closed it
                sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe left; that is not our error
        _drop_output()
        sys.exit(0)
    except (ValueError, OSError, MemoryError) as error:
        _drop_output()
        message = str(error) or "not enough memory"
        parser.exit(2, f"{parser.prog}: {_one_line(message)}\n")
    except RuntimeError as error:  # jax's own class of it; jax need not have been imported
        if not str(error).startswith("RESOURCE_EXHAUSTED"):
            raise
        _drop_output()
        parser.exit(2, f"{parser.prog}: not enough memory: {_one_line(str(error))}\n")
    except KeyboardInterrupt:
        sys.exit(130)


def _one_line(message: str) -> str:
    line = " ".join(message.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def _drop_output() -> None:
    """Keep the interpreter from complaining at its end of a standard output that takes no more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
