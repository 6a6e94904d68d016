"""`obscura COMMAND ...`: finds the command, and turns a user's mistakes into one line."""

import argparse
import os
import sys
from typing import NoReturn

from obscura_jax import __version__
from obscura_jax.cli import convert, generate, info


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: list[str] | None = None) -> None:
    """Run one command; exits 0, or 2 after one line on standard error that says what was wrong."""
    parser = _OneLineParser(prog="obscura", description="A from-scratch GPT in JAX.")
    parser.add_argument("--version", action="version", version=f"obscura_jax {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", required=True)
    for command in (generate, convert, info):
        command.add_to(commands)
    args = parser.parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of a pipe left; that is not our error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        sys.exit(_fail(args.command, error))
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(command: str, error: Exception) -> int:
    print(f"obscura {command}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
