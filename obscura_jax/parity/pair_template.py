"""Write an example of a pair file, from which a user's own can start."""

import shlex
from importlib.resources import files
from pathlib import Path

from obscura_jax.parity import report_files


def write_example(name: str) -> str:
    """Write the example to a new file, and return the command that compares its programs.

    Raises:
        ValueError: if the file exists or cannot be written, or its name does not end in .py.
    """
    path = Path(name)
    if path.suffix != ".py":
        raise ValueError(f"{name!r} is not the name of a Python file; end it in .py")
    if path.exists() or path.is_symlink():
        raise ValueError(f"{path} exists already; name a new file")
    report_files.check_writable(name)
    text = files("obscura_jax.parity").joinpath("pair_template.py.txt").read_text("utf-8")
    report_files.write(name, lambda: text.replace("THIS_FILE", path.name))
    return f"obscura parity {shlex.quote(name)}"
