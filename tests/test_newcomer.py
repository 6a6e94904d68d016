"""A README whose commands fail or print something else is noticed, in a clean environment."""

import sys

import pytest

from tests.support import newcomer, processes

README = """
```console
$ make demo
installing
hello
...
```
```console
$ make test
```
```python
total = 1 + 2
print(total)  # 3
```
```console
$ cat word.txt
Jahr
```
## What is proved
```console
$ cat none
```
"""
MAKEFILE = """
demo: ; @printf 'installing\\nhello\\nmore\\nmore\\n'
.venv/.test: ; @echo Jahr > word.txt
test: ; false
"""


@pytest.fixture
def clone(tmp_path):
    """A folder with a README, the programs that it calls, and an empty home."""
    (tmp_path / "home").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "Makefile").write_text(MAKEFILE)
    return tmp_path


def differences(clone, readme):
    (clone / "README.md").write_text(readme)
    return newcomer.followed(clone, clone / "home")[1]


def test_the_commands_print_what_the_readme_shows(clone):
    assert differences(clone, README) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("hello", "hallo", "make demo: 'hallo' is now 'hello'"),
        ("make demo", "make dem", "make dem: 'installing' is now 'exit'"),
        ("print(total)  # 3", "print(total)  # 4", "python program.py: 4 is now 3"),
        ("total = 1", "total = one", "python program.py: 3 is now 1"),
        ("Jahr", "Tag", "cat word.txt: 'Tag' is now 'Jahr'"),
    ],
)
def test_another_output_is_noticed(clone, old, new, found):
    assert differences(clone, README.replace(old, new)) == [found]


def test_a_failed_installation_is_noticed(clone):
    (clone / "Makefile").write_text(MAKEFILE.replace("@echo Jahr", "@false"))
    assert "make .venv/.test: '(nothing)' is now 'exit'" in differences(clone, README)


def test_the_environment_has_only_what_installing_needs(clone, monkeypatch):
    active = clone / "other" / "bin"
    active.mkdir(parents=True)
    (clone / "other" / "pyvenv.cfg").touch()
    monkeypatch.setenv("PATH", f"{active}:/usr/bin:/bin")
    monkeypatch.setenv("OBSCURA_CACHE_DIR", "full")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("PIP_CERT", "certificates")
    monkeypatch.setenv("https_proxy", "somewhere")
    shell = newcomer.clean_shell(clone, clone / "home")
    lines = processes.run(*shell, "-c", "env").stdout.splitlines()
    variables = dict(line.split("=", 1) for line in lines)
    assert variables["HOME"] == str(clone / "home")
    assert variables["PATH"] == f"{clone}/.venv/bin:/usr/bin:/bin"
    assert variables["PIP_CERT"] == "certificates"
    assert variables["https_proxy"] == "somewhere"
    assert not {"OBSCURA_CACHE_DIR", "JAX_PLATFORMS"} & set(variables)
