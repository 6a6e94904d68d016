# PYTHON_ARGCOMPLETE_OK: shells look for these words before they start a command to complete it.
"""The command `obscura`, also started as `python -m obscura_jax`."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C during the next import

from obscura_jax import interrupts


def run() -> None:
    """Run the command given by this process's arguments."""
    interrupts.install()
    from obscura_jax.cli.main import main  # a slow import

    main()


if __name__ == "__main__":
    run()
