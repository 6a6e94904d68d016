"""Signals end a command quietly at any time, and training after the current step."""

import json
import os
import signal
import sys

import pytest

from obscura_jax.runs.fit import read_metrics
from obscura_jax.text import sample_text
from tests.support import processes

# Sends a signal to its own process at the n-th import, or in the n-th run of the garbage collector,
# after the handlers are installed; the other arguments are the command's.
AT_A_MOMENT = """
import gc, os, sys

event, number, signal, *words = sys.argv[1:]
left = int(number)


def count():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(signal))


from obscura_jax.__main__ import run

if event == "import":
    sys.addaudithook(lambda name, _: name == "import" and count())
else:
    gc.callbacks.append(lambda phase, _: phase == "start" and count())
sys.argv[1:] = words
run()
"""
LONG = ["generate", "Hello", "--max-new-tokens", "3000", "--sliding", "--no-compile-cache"]


def ends_quietly(command, number):
    done = processes.run(sys.executable, *command)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, "", "")


@pytest.mark.parametrize("count", [10, 300, 600, 900])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_ends_the_command_quietly(count, number):
    ends_quietly(["-c", AT_A_MOMENT, "import", str(count), str(int(number)), *LONG], number)


@pytest.mark.parametrize("count", [1, 20, 60])
def test_a_signal_inside_the_garbage_collector_ends_the_command_quietly(count):
    number = signal.SIGINT
    ends_quietly(["-c", AT_A_MOMENT, "gc", str(count), str(int(number)), *LONG], number)


@pytest.mark.parametrize(
    "words", [["convert", "torch-seed:1", "made"], ["parity", "tiny"], ["bench", "--model", "tiny"]]
)
def test_a_signal_to_other_commands_leaves_no_files(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    number = signal.SIGTERM
    ends_quietly(["-c", AT_A_MOMENT, "import", "700", str(int(number)), *words], number)
    assert list(tmp_path.iterdir()) == []


def test_a_signal_before_the_command_line_is_imported_prints_nothing():
    code = "import os, obscura_jax.__main__; os.kill(os.getpid(), 2); print('still here')"
    done = processes.run(sys.executable, "-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_an_ignored_signal_stays_ignored():
    words = ["-c", AT_A_MOMENT, "import", "30", str(int(signal.SIGINT)), "info", "tiny"]
    shell = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh", sys.executable]
    done = processes.run(*shell, *words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "parameters" in done.stdout


@pytest.mark.slow
def test_training_stops_after_the_current_step_or_at_the_second_signal(tmp_path):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    words = ["train", "--text", str(text), "--out", str(out), "--vocab-size", "300"]
    words += ["--emb-dim", "8", "--n-layers", "1", "--context-length", "16", "--steps", "1000000"]
    process = processes.start(*processes.OBSCURA, *words, stderr=processes.PIPE)
    process.stdout.readline()  # a step was taken
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "stopping after this step; press Ctrl-C again to stop now\n"
    assert said.splitlines()[-1].startswith("saved after step ")
    saved = [int(path.name) for path in (out / "checkpoints").iterdir()]
    assert max(saved) == read_metrics(out / "metrics.jsonl")[-1]["step"] + 1
    assert json.loads((out / "settings.json").read_text())["emb_dim"] == 8

    words = ["train", "--out", str(out), "--resume"]
    code = AT_A_MOMENT.replace("os.kill(os", "for _ in range(2): os.kill(os")
    done = processes.run(sys.executable, "-c", code, "gc", 60, int(signal.SIGTERM), *words)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
