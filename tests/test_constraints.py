"""`make` installs the versions of the file that fits the Python of its environment."""

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support import processes

ROOT = Path(__file__).parents[1]
FILES = ["constraints.txt", "constraints-newest.txt"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
INSTALLED = ("test", "dev", "docs", "tpu", "cuda-compile")  # the extras that make installs


def chosen(venv, version, *words):
    """Return the file that make chooses for an environment whose Python has a version."""
    pretend = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{pretend}" "$2"\n')
    python.chmod(0o755)
    show = "show: ; @echo $(CONSTRAINTS)"
    ended = processes.run("make", "-s", f"--eval={show}", f"VENV={venv}", *words, "show", cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.parametrize(
    ("version", "file"),
    [
        ((3, 11, 9), FILES[0]),
        ((3, 12, 12), FILES[0]),
        ((3, 13, 0), FILES[1]),
        ((3, 14, 1), FILES[1]),
    ],
)
def test_the_file_fits_the_python(tmp_path, version, file):
    assert chosen(tmp_path / "venv", version) == file


def test_the_file_can_be_named(tmp_path):
    assert chosen(tmp_path / "venv", (3, 13, 0), f"CONSTRAINTS={FILES[0]}") == FILES[0]


def unmet(constraints):
    """Return the packages that make installs without an allowed version in a file."""
    lines = [line for line in constraints.splitlines() if not line.startswith("#")]
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines)
    extras = [line for name in INSTALLED for line in PROJECT["optional-dependencies"][name]]
    needed = [Requirement(line) for line in PROJECT["dependencies"] + extras]
    return [
        one.name
        for one in needed
        if one.name != PROJECT["name"] and not one.specifier.contains(pins.get(one.name, "0"))
    ]


@pytest.mark.parametrize("file", FILES)
def test_every_package_is_pinned_to_an_allowed_version(file):
    text = (ROOT / file).read_text("utf-8")
    assert text.splitlines()[0].endswith(f"pip install -c {file} -e .")
    assert unmet(text) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("\nflax==0.12.", "\nflax==0.13.", {"flax"}),
        ("\ntorch==", "\ntorchh==", {"torch"}),
        ("\noptax==", "\n# optax==", {"optax"}),
    ],
)
@pytest.mark.parametrize("file", FILES)
def test_another_version_is_noticed(file, old, new, found):
    text = (ROOT / file).read_text("utf-8")
    assert old in text
    assert set(unmet(text.replace(old, new))) == found
