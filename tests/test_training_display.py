"""A training run continues when its terminal or pipe is closed."""

import io
import os
import sys

import pytest

from obscura_jax.runs.display import Display, ExpendableStream, print_line, show_tokenizing
from obscura_jax.text import sample_text
from tests.support import processes

ROWS = [
    {"step": 9, "loss": 1.0, "tokens_per_second": 5.0},
    {"step": 9, "val_loss": 1.0, "sample": "[red]ü"},
]


def show_everything():
    with Display(10) as show:
        for row in ROWS:
            show(row)
    show_tokenizing(1 << 23, 1 << 24)


def test_metrics_and_progress_are_shown(capsys):
    show_everything()
    assert capsys.readouterr().out.splitlines() == [
        "step 10: loss 1.0000, 5 tokens/s",
        "step 10: validation loss 1.0000",
        "  '[red]ü'",
        "tokens: 50% of 16 MiB of text",
    ]


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


def full_disk():
    return open("/dev/full", "w")


@pytest.mark.parametrize("make", [lambda: None, broken_pipe, closed_stream, full_disk])
def test_a_stream_that_cannot_be_written_raises_nothing(monkeypatch, make):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    show_everything()
    print_line("a line", stream)
    if stream is not None:
        stream.close()  # its buffer is empty


def test_a_plain_print_to_such_a_stream_raises():
    """Control for the test before."""
    for make, error in ((broken_pipe, BrokenPipeError), (closed_stream, ValueError)):
        stream = make()
        with pytest.raises(error):
            print("a line", file=stream, flush=True)
        if error is BrokenPipeError:
            with pytest.raises(BrokenPipeError):
                stream.close()


def test_a_terminal_and_its_encoding_are_detected(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    assert ExpendableStream(stream).isatty()
    assert ExpendableStream(stream).encoding == "latin-1"
    assert not ExpendableStream(None).isatty()
    assert ExpendableStream(None).encoding == "utf-8"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "broken"])
def test_a_run_finishes_without_standard_output_and_error(tmp_path, how):
    """The shell closed them, or they are pipes without a reader."""
    words = sample_text() + "\n" * (9 << 20)  # long enough to print the progress of tokenizing
    (tmp_path / "text.txt").write_text(words, encoding="utf-8")
    sizes = "--emb-dim 8 --n-heads 2 --n-layers 1 --context-length 16 --vocab-size 50257"
    rest = f"--steps 11 --batch-size 2 --val-fraction 0.0001 --out {tmp_path}/run"
    command = f"{sys.executable} -m obscura_jax train --text {tmp_path}/text.txt {sizes} {rest}"
    if how == "closed":
        command += " >&- 2>&-"
    with broken_pipe() as pipe:
        ended = processes.run("sh", "-c", command, stdout=pipe, stderr=pipe)
    assert ended.returncode == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()
