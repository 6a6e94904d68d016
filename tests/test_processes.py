"""Real processes as one run: over loopback, resumed on others, killed, and kept waiting."""

import json
import shutil
import signal
import socket
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest

from obscura_jax.cli.main import main
from obscura_jax.runs.fit import read_metrics
from obscura_jax.scale.processes import joined
from obscura_jax.scale.rendezvous import parse_address
from obscura_jax.text import sample_text
from tests.support.processes import OBSCURA, PIPE, ended
from tests.support.processes import devices as cpu_devices
from tests.support.processes import start as start_process

SIZES = ["--vocab-size", "300", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "2"]
HOW = [*SIZES, "--context-length", "16", "--batch-size", "8", "--lr", "0.01", "--seed", "3"]
HOW += ["--steps", "12", "--save-every", "6", "--validate-every", "6"]


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(count, devices, *words):
    """So many processes of one training, each with so many devices."""
    command = [*OBSCURA, "train", *words, "--coordinator", f"localhost:{free_port()}"]
    command += ["--processes", count, "--join-timeout", "100000"]
    env = {**cpu_devices(devices), "OMP_NUM_THREADS": "1"}
    return [start_process(*command, "--process-id", n, env=env) for n in range(count)]


def losses(out):
    return [row.get("loss", row.get("val_loss")) for row in read_metrics(out / "metrics.jsonl")]


def test_two_processes_then_four_on_another_mesh(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    main(["train", "--text", str(text), "--out", str(tmp_path / "one"), *HOW])
    want = losses(tmp_path / "one")
    assert len(want) == 14
    two, four = tmp_path / "two", tmp_path / "four"
    said, codes = ended(start(2, 2, "--text", text, "--out", two, *HOW, "--mesh", "data=2,model=2"))
    assert codes == [0, 0], said
    np.testing.assert_allclose(losses(two), want, rtol=1e-5)
    assert "step 10" in said[0]
    assert "step 10" not in said[1]
    assert sorted(path.name for path in (two / "checkpoints").iterdir()) == ["12", "6"]

    shutil.copytree(two, four)
    shutil.rmtree(four / "checkpoints" / "12")
    shutil.rmtree(four / "model")
    processes = start(4, 1, "--out", four, "--resume", "--mesh", "fsdp=4", "--scan")
    said, codes = ended(processes)
    assert codes == [0] * 4, said
    np.testing.assert_allclose(losses(four), want, rtol=1e-5)
    rows = [row["step"] for row in read_metrics(four / "metrics.jsonl") if "loss" in row]
    assert rows == list(range(12))  # each written once
    assert json.loads((four / "model" / "config.json").read_text())["emb_dim"] == 8


PARTS = """
import json, sys
from obscura_jax import GPTConfig, GPT_CONFIG_124M
from obscura_jax.scale.mesh import make_mesh, parse_mesh
from obscura_jax.scale.processes import joined
from obscura_jax.scale.placement import MeshPlacement

with joined(sys.argv[1], 2, int(sys.argv[2]), timeout=100000):
    cfg = GPTConfig(**GPT_CONFIG_124M)
    meshes = [make_mesh(parse_mesh(text)) for text in ("data=4", "data=2,model=2", "model=4")]
    print(json.dumps([MeshPlacement(mesh=mesh, cfg=cfg).local_rows(8, 2) for mesh in meshes]))
"""


def test_each_process_reads_its_own_part():
    """Of two processes with two devices each, where a batch of 8 is read in two parts."""
    address = f"localhost:{free_port()}"
    command, pipes = [sys.executable, "-c", PARTS, address], {"stderr": PIPE}
    processes = [start_process(*command, n, env=cpu_devices(2), **pipes) for n in range(2)]
    said, codes = ended(processes)
    assert codes == [0, 0]
    first, second = map(json.loads, said)
    assert first == [[0, 1, 4, 5], [0, 1, 4, 5], list(range(8))]
    assert second == [[2, 3, 6, 7], [2, 3, 6, 7], list(range(8))]  # model=4 splits no rows


def start_three(out):
    """Three processes of a training without end, which has made a checkpoint."""
    text = out.with_name("text.txt")
    text.write_text(sample_text(), encoding="utf-8")
    processes = start(3, 1, "--text", text, "--out", out, *HOW, "--batch-size", 6, "--steps", 10**6)
    while not (out / "checkpoints" / "6").exists():
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)
    return processes


def test_a_signal_to_one_saves_and_stops_all(tmp_path):
    processes = start_three(tmp_path / "run")
    processes[1].terminate()
    said, codes = ended(processes)
    assert codes == [128 + signal.SIGTERM] * 3, said
    step = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert f"saved after step {step}" in said[0]
    rows = [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert max(rows) == step - 1  # nothing is lost


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_others(victim, tmp_path):
    out = tmp_path / "run"
    processes = start_three(out)
    processes[victim].kill()
    said, codes = ended(processes)
    for number in {0, 1, 2} - {victim}:
        message = f"process {victim} of 3 died; shutting down process {number}. Restart all"
        assert message in said[number].splitlines()[-1]
        assert codes[number] == 2
    main(["train", "--out", str(out), "--resume", "--max-seconds", "0.001"])
    assert losses(out)  # one device went on from the newest checkpoint
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(len(steps)))
    assert len(steps) > 6


def test_a_process_that_fails_stops_the_others(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(sample_text(), encoding="utf-8")
    words = ("--text", text, "--out", tmp_path / "run", *HOW, "--mesh", "data=3")
    said, codes = ended(start(2, 1, *words))
    assert codes == [2, 2]
    assert "mesh data=3 needs 3 devices, but there are 2 (cpu)" in said[0].splitlines()[-1]
    assert "process 0 of 2 died; shutting down process 1" in said[1].splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_processes_with_other_options(tmp_path):
    command = [*OBSCURA, "train", "--out", tmp_path, "--join-timeout", "100000"]
    command += ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    processes = [
        start_process(*command, "--process-id", n, "--save-every", 10 + n) for n in range(2)
    ]
    said, codes = ended(processes)
    assert codes == [2, 2]
    for line in said:
        assert line == (
            "obscura train: process 1 was started with --save-every 11, process 0 with "
            "--save-every 10; all need the same\n"
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coordinator", "{}", "--processes", 2, "--process-id", 1], "no coordinator answered"),
        (["--coordinator", "{}", "--processes", 3, "--process-id", 0], "for process 1, 2 of 3 to"),
        (["--coordinator", "host", "--processes", 2, "--process-id", 0], "invalid coordinator"),
        (["--coordinator", "{}", "--processes", 2, "--process-id", 2], "process 2 is not one of 2"),
        (["--coordinator", "{}"], "--coordinator, --processes and --process-id belong together"),
    ],
)
def test_who_does_not_come(words, message, tmp_path, capsys):
    address = f"localhost:{free_port()}"
    words = [str(word).format(address) for word in words]
    with pytest.raises(SystemExit) as stop:
        main(["train", "--out", str(tmp_path / "run"), *words, "--join-timeout", "1"])
    error = capsys.readouterr().err
    assert (stop.value.code, error.count("\n")) == (2, 1)
    assert message in error
    if "answered" in message or "for process" in message:
        assert address in error
        assert " 1 s" in error
    assert not (tmp_path / "run").exists()


def test_who_is_no_coordinator_and_who_asks_for_nothing(tmp_path):
    """Another program at the address; another program that comes to it, and says nothing."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"

        def greet():
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
                connection.recv(100)

        threading.Thread(target=greet).start()
        with (
            pytest.raises(ValueError, match="is not a coordinator"),
            joined(address, 2, 1, timeout=100000),
        ):
            pass
    address = f"localhost:{free_port()}"

    over = threading.Event()

    def disturb():
        while not over.wait(0.1):
            with suppress(OSError), socket.create_connection(parse_address(address)):
                over.wait()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    with (
        pytest.raises(ValueError, match="waiting for process 1 of 2 to connect"),
        joined(address, 2, 0, timeout=4),
    ):
        pass
    over.set()
    disturbing.join()


def test_processes_that_count_differently(tmp_path):
    address = f"localhost:{free_port()}"
    code = (
        "from obscura_jax.scale.processes import joined\n"
        f"with joined('{address}', 3, 2, timeout=100000): pass\n"
    )
    other = start_process(sys.executable, "-c", code, stderr=PIPE)
    with (
        pytest.raises(ValueError, match="process 2 was started as one of 3, process 0 as one"),
        joined(address, 2, 0, timeout=100000),
    ):
        pass
    assert "ValueError: process 2 was started as one of 3" in other.communicate()[1]
