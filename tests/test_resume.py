"""A training run that is killed repeatedly ends like one that was not interrupted."""

import errno
import json
import random
import shutil
import signal
import sys
import threading

import numpy as np
import pytest

from obscura_jax.cli.main import main
from obscura_jax.runs.fit import read_metrics
from obscura_jax.safetensors_files import read_safetensors
from obscura_jax.text import sample_text
from tests.support import processes

SIZES = ["--vocab-size", "300", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "1"]
SETTINGS = [*SIZES, "--context-length", "16", "--batch-size", "4", "--grad-accum-steps", "2"]
SETTINGS += ["--steps", "600", "--drop-rate", "0.1", "--learning-rate", "0.01"]
HOW = ["--save-every", "20", "--validate-every", "200"]


# Sends a signal to its own process in a function call after a step. The arguments are the signal's
# number, the step, the number of calls after it, and those of the command.
AT_A_CALL = """
import os, sys

number, step, calls, *sys.argv[1:] = sys.argv[1:]
left = int(calls)


def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), int(number))


from obscura_jax.__main__ import run
from obscura_jax.runs.display import Display

show = Display.__call__


def watched(self, row):
    show(self, row)
    if row["step"] == int(step):
        sys.setprofile(count)


Display.__call__ = watched
run()
"""


def wait_for_step(process, out, step):
    """Wait until `process` has written the metrics of a step."""
    while process.poll() is None:
        rows = read_metrics(out / "metrics.jsonl")
        if rows and rows[-1]["step"] >= step:
            return
        threading.Event().wait(0.005)
    raise AssertionError(process.communicate()[0])


def what_was_computed(out):
    """Return all rows of the metrics without their speed, and the model's bytes."""
    rows = [
        {name: row[name] for name in row if name != "tokens_per_second"}
        for row in read_metrics(out / "metrics.jsonl")
    ]
    return rows, (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_second_process_in_the_folder_is_refused(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    words = ["train", "--text", text, "--out", out, *SETTINGS, "--steps", 10**6]
    process = processes.start(*processes.OBSCURA, *words)
    wait_for_step(process, out, 0)
    with pytest.raises(SystemExit):
        main(["train", "--out", str(out), "--resume"])
    assert "another process is training in" in capsys.readouterr().err
    wait_for_step(
        process, out, read_metrics(out / "metrics.jsonl")[-1]["step"] + 100
    )  # the first one continues


@pytest.mark.slow
def test_a_run_killed_at_random_moments_has_the_same_result(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    alone, out = tmp_path / "alone", tmp_path / "killed"
    main(["train", "--text", str(text), "--out", str(alone), *SETTINGS, *HOW])
    want = what_was_computed(alone)
    assert len(want[0]) == 603

    draw = random.Random(3)
    reached = 0
    words = ["--text", text, *SETTINGS]
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        moment = (int(number), reached + draw.randint(1, 60), draw.randint(1, 20_000))
        command = [sys.executable, "-c", AT_A_CALL, *moment, "train", "--out", out, *words, *HOW]
        done = processes.run(*command)
        if number == signal.SIGKILL:
            assert done.returncode == -number, done.stderr
        else:
            assert done.returncode == 128 + number, done.stderr
            assert "saved after step" in done.stdout
        at = read_metrics(out / "metrics.jsonl")[-1]["step"]
        folders = [path.name for path in (out / "checkpoints").glob("*")]
        kept = max([int(name) for name in folders if name.isdecimal()], default=0)
        assert kept > at - 20  # no more steps than --save-every are lost
        reached, words = at, ["--resume"]
    text.unlink()  # its tokens are in the folder
    done = processes.run(*processes.OBSCURA, "train", "--out", out, "--resume", *HOW)
    assert done.returncode == 0, done.stderr
    assert what_was_computed(out) == want
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")

    # Control: another seed gives another result.
    other = tmp_path / "other"
    text.write_text(sample_text(), encoding="utf-8")
    main(["train", "--text", str(text), "--out", str(other), *SETTINGS, *HOW, "--seed", "1"])
    assert what_was_computed(other)[0][-1] != want[0][-1]


@pytest.mark.slow
def test_a_resume_with_wrong_settings_or_files_is_refused(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    out = tmp_path / "run"

    def refused(message, *words):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--out", str(out), *words])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1

    refused("contains no training run to resume; check the path", "--resume")
    assert not out.exists()
    main(["train", "--text", str(text), "--out", str(out), *SETTINGS, "--steps", "2"])
    capsys.readouterr()
    before = what_was_computed(out)
    message = "was started with emb_dim=8, not 16; leave emb_dim out"
    refused(message, "--resume", "--emb-dim", "16")
    refused("already contains a training run; resume it (--resume)", "--text", str(text))
    refused("steps and epochs cannot both be given; leave one", "--steps", "3", "--epochs", "1")
    settings = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps({**settings, "learning_rate": 0.5}))
    refused("its optimizer.learning_rate is 0.01, here it is 0.5", "--resume")
    (out / "settings.json").write_text("{")
    refused("settings.json is damaged", "--resume")
    for name, value in (
        *(("learning_rate", "x"), ("learning_rate", True), ("steps", "2"), ("steps", -5)),
        *(("text", "a.txt"), ("seed", True), ("seed", 2**40), ("vocab_size", 3.5), ("dtype", "f")),
        *(("preset", "other"), ("remat", "all"), ("logits_chunk", -3), ("stride", [1])),
    ):
        (out / "settings.json").write_text(json.dumps({**settings, name: value}))
        refused(f"settings.json is damaged ({name} must be ", "--resume")
    for wrong in (b"[]", b"3", b"\xff", b"", b"[" * 10**5):
        (out / "settings.json").write_bytes(wrong)
        refused("settings.json is damaged", "--resume")
    for name in ("learning_rate", "seed", "emb_dim"):
        absent = {key: value for key, value in settings.items() if key != name}
        for saved in (absent, {**settings, name: None}):
            (out / "settings.json").write_text(json.dumps(saved))
            refused(f"settings.json is damaged ({name} is missing); correct it", "--resume")
    (out / "settings.json").write_text(json.dumps(settings))
    metrics = (out / "metrics.jsonl").read_bytes()
    number = metrics.count(b"\n") + 1
    no_rows = (b"3", b"[1]", b'{"loss": 1}', b'{"step": "1"}', b'{"step": true}', b"\xff\xfe", b"{")
    for wrong in (*no_rows, b"", b"[" * 10**5):
        for after in (b"", metrics):
            (out / "metrics.jsonl").write_bytes(metrics + wrong + b"\n" + after)
            message = f"metrics.jsonl is damaged: line {number} is not a row; delete that line"
            refused(message, "--resume")
    (out / "metrics.jsonl").write_bytes(
        metrics + b'{"st'
    )  # a killed process left an incomplete line
    main(["train", "--out", str(out), "--resume"])  # nothing is left to do
    assert what_was_computed(out) == before


@pytest.mark.slow
def test_a_folder_that_is_not_empty_is_refused_and_unchanged(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    for name in ("checkpoints/3/bad", "notes.txt"):
        (out / name).parent.mkdir(parents=True)
        (out / name).write_text("mine")
        with pytest.raises(SystemExit):
            main(["train", "--text", str(text), "--out", str(out), *SETTINGS])
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{out} is not empty ({name.split('/')[0]}); choose a new or empty folder" in error
        assert files(out) == {name}
        shutil.rmtree(out)
    out.mkdir()
    (out / ".gitkeep").touch()
    main(["train", "--text", str(text), "--out", str(out), *SETTINGS, "--steps", "1"])
    assert files(out) > {".gitkeep", "settings.json", "model/config.json"}
    assert ".lock" not in files(out)


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def fail(error):
    def instead(*_, **__):
        raise error

    return instead


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("runs.prepare.tokenize_to_file", PermissionError(13, "Permission denied")),
        ("runs.launch.gpt2_init", RuntimeError("RESOURCE_EXHAUSTED: too large")),
        ("training.placement.train_step_jit", ValueError("no such step")),
    ],
)
def test_a_run_that_fails_before_its_first_step_leaves_no_files(
    place, error, tmp_path, capsys, monkeypatch
):
    text, out = tmp_path / "text.txt", tmp_path / "new" / "deep" / "run"
    text.write_text(sample_text(), encoding="utf-8")
    monkeypatch.setattr(f"obscura_jax.{place}", fail(error))
    words = ["train", "--text", str(text), "--out", str(out), *SETTINGS, "--steps", "1"]
    for _ in range(2):  # the second call fails for the same reason
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert str(error.args[-1]) in message
    assert list(tmp_path.iterdir()) == [text]
    monkeypatch.undo()
    main(words)
    assert "model/config.json" in files(out)


@pytest.mark.slow
def test_a_full_disk_keeps_the_tokens_read_so_far(tmp_path, capsys, monkeypatch):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr("obscura_jax.runs.prepare.tokenize_to_file", fail(full))
        with pytest.raises(SystemExit):
            main(["train", "--text", str(text), "--out", str(out), *SETTINGS, "--steps", "1"])
    assert "No space left on device" in capsys.readouterr().err
    assert files(out) == {"settings.json"}
    main(["train", "--out", str(out), "--resume"])
    assert "model/config.json" in files(out)


def test_a_refused_resume_changes_no_setting(tmp_path, capsys):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    main(["train", "--text", str(text), "--out", str(out), *SETTINGS, "--steps", "1"])
    before = (out / "settings.json").read_bytes()
    (out / "tokens.bin.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["train", "--out", str(out), "--resume", "--logits-chunk", "5"])
    assert "tokens.bin.json is damaged" in capsys.readouterr().err
    assert (out / "settings.json").read_bytes() == before


@pytest.mark.slow
def test_unreadable_checkpoints_are_reported_in_one_line(tmp_path, capfd):
    text, out = tmp_path / "text.txt", tmp_path / "run"
    text.write_text(sample_text(), encoding="utf-8")
    words = [*SETTINGS, "--steps", "2", "--save-every", "1"]
    main(["train", "--text", str(text), "--out", str(out), *words])
    metadata = [path for path in out.glob("checkpoints/*/**/*") if path.is_file()]
    capfd.readouterr()
    for path in metadata:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", str(out), "--resume"])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1
    assert "can be read: step 2 (" in error


@pytest.mark.slow
def test_max_seconds_ends_a_run_that_can_be_resumed(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    out = str(tmp_path / "run")
    main(["train", "--text", str(text), "--out", out, *SETTINGS, "--max-seconds", "0.001"])
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0]
    assert (tmp_path / "run" / "model" / "config.json").exists()
    main(["train", "--out", out, "--resume", "--max-seconds", "0.001"])
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [0, 1]
    with pytest.raises(SystemExit):
        main(["train", "--out", out, "--resume", "--max-seconds", "0"])
    assert "max_seconds must be above 0" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_may_be_resumed_with_scan_remat_and_logits_chunks(tmp_path):
    """The losses, with dropout, are those of an uninterrupted run without these options."""
    text, one, two = tmp_path / "text.txt", tmp_path / "one", tmp_path / "two"
    text.write_text(sample_text(), encoding="utf-8")
    words = [*SIZES[:-1], "3", "--context-length", "16", "--batch-size", "4", "--steps", "8"]
    words += ["--drop-rate", "0.2"]
    main(["train", "--text", str(text), "--out", str(one), *words])
    main(["train", "--text", str(text), "--out", str(two), *words, "--max-seconds", "0.001"])
    how = ["--scan", "--remat", "blocks", "--logits-chunk", "5"]
    main(["train", "--out", str(two), "--resume", "--max-seconds", "0.001", *how])
    main(["train", "--out", str(two), "--resume"])
    assert json.loads((two / "settings.json").read_text())["remat"] == "blocks"
    losses, want = (
        [row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
        for out in (two, one)
    )
    np.testing.assert_allclose(losses, want, rtol=1e-5)  # 1.7e-07 measured
    assert len(want) == 8
    ours, theirs = (read_safetensors(out / "model" / "model.safetensors") for out in (two, one))
    assert {n: x.shape for n, x in ours.items()} == {n: x.shape for n, x in theirs.items()}
