"""No test depends on the clock, since a machine may be busy."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WAITS = {"run", "communicate", "wait", "join", "get", "acquire", "result", "start"}


def uses_of_the_clock(source):
    """Return what a test reads of the clock or bounds by it; pauses are allowed."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name == "subprocess"]
        elif isinstance(node, ast.ImportFrom) and node.module in ("time", "subprocess", "datetime"):
            found.append(node.module)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("time.") and name != "time.sleep":
                found.append(name)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            limits = [word.arg for word in node.keywords if word.arg in ("timeout", "deadline")]
            found += [f"{node.func.attr}({limit}=)" for limit in limits if node.func.attr in WAITS]
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_the_file_does_not_use_the_clock(path):
    expected = ["subprocess", "subprocess"] if path.name == "processes.py" else []
    assert uses_of_the_clock(path.read_text(encoding="utf-8")) == expected


@pytest.mark.parametrize(
    "source",
    [
        "import subprocess",
        "from subprocess import run",
        "from time import time",
        "random.seed(time.time_ns())",
        "until = time.monotonic() + 100",
        "process.communicate(timeout=60)",
        "done = processes.run('ls', timeout=3)",
    ],
)
def test_a_use_of_the_clock_is_detected(source):
    assert uses_of_the_clock(source)


@pytest.mark.parametrize("source", ["time.sleep(0.1)", "joined(address, 2, 0, timeout=4)"])
def test_a_pause_is_allowed(source):
    assert not uses_of_the_clock(source)
