"""The command `obscura`, also started as `python -m obscura_jax`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the next line imports

from obscura_jax.cli import interrupts


def run() -> None:
    """Run the command line of this process."""
    interrupts.install()
    from obscura_jax.cli.__main__ import main  # takes longer to import

    main()


if __name__ == "__main__":
    run()
