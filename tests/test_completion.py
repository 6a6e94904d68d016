"""A shell that asks gets the words that can follow, from both ways to start the command."""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support import processes

MODULE = "python -m obscura_jax"
WITHOUT = """
import sys
sys.modules["argcomplete"] = None
sys.argv = ["obscura"]
from obscura_jax.__main__ import run
run()
"""


@pytest.fixture
def asked(tmp_path):
    """Return a function that starts the command as a shell does when Tab is pressed."""

    def ask(line, *command):
        answer = tmp_path / "answer"
        answer.write_text("")
        env = {
            "_ARGCOMPLETE": str(1 + MODULE.count(" ") if line.startswith(MODULE) else 1),
            "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
            "_ARGCOMPLETE_IFS": "\n",
            "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "COMP_TYPE": "9",
        }
        ended = processes.run(*(command or processes.OBSCURA), env=env, cwd=tmp_path)
        return answer.read_text().split("\n"), ended

    return ask


@pytest.mark.parametrize("start", ["obscura", MODULE])
def test_words_that_can_follow(asked, tmp_path, start):
    assert asked(f"{start} in")[0] == ["info"]
    assert asked(f"{start} convert a b --to ")[0] == ["native", "course", "hf", "nanogpt"]
    (tmp_path / "book.txt").touch()
    assert asked(f"{start} train --text bo")[0] == ["book.txt"]
    assert asked(f"{start} there_is_no_such_command --t")[0] == [""]


def test_old_names_of_options_are_not_offered(asked):
    offered = {"--learning-rate", "--logits-chunk", "--look-every"}  # and not --lr
    assert set(asked("obscura train --l")[0]) == offered


def test_a_command_only_answers_when_a_shell_asks(asked):
    _, ended = asked("obscura in", *processes.OBSCURA, "--version")
    assert (ended.stdout, ended.stderr) == ("", "")
    assert processes.run(*processes.OBSCURA, "--version").stdout.startswith("obscura_jax 0.")


def test_without_the_extra_nothing_is_offered_and_nothing_run(asked):
    words, ended = asked("obscura in", sys.executable, "-c", WITHOUT)
    assert (words, ended.returncode) == ([""], 2)
    assert ended.stderr.startswith("obscura: shell completion needs argcomplete: run pip install")


def test_commands_do_not_import_it():
    show = "import atexit, sys; atexit.register(lambda: print('argcomplete' in sys.modules))"
    run = "sys.argv = ['obscura', '--version']; from obscura_jax.__main__ import run; run()"
    for more, imported in (("", "False"), ("; import argcomplete", "True")):
        out = processes.run(sys.executable, "-c", f"{show}{more}; {run}").stdout
        assert out.splitlines()[-1] == imported


def test_a_shell_recognizes_the_module():
    """Completion of every Python command looks for a mark in the first 1024 bytes of the file."""
    source = Path(find_spec("obscura_jax.__main__").origin).read_bytes()
    assert b"PYTHON_ARGCOMPLETE_OK" in source[:1024]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_in_bash():
    from argcomplete import shellcode

    code = f"""{shellcode(["obscura"])}
obscura() {{ {sys.executable} -m obscura_jax "$@"; }}
COMP_LINE="obscura train --learn" COMP_POINT=21 COMP_TYPE=9
_python_argcomplete obscura --learn
echo "${{COMPREPLY[@]}}"
"""
    done = processes.run("bash", "-c", code)
    assert (done.stdout.strip(), done.stderr) == ("--learning-rate", "")
