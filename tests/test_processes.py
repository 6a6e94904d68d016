"""Several processes as one run: over loopback, detected, resumed, killed, and kept waiting."""

import json
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
from obscura_jax.scale.processes import distributed_session, parse_address
from obscura_jax.text import sample_text
from tests.support.processes import OBSCURA, ended
from tests.support.processes import devices as cpu_devices
from tests.support.processes import start as start_process

SIZES = ["--vocab-size", "300", "--emb-dim", "8", "--n-heads", "2", "--n-layers", "2"]
HOW = [*SIZES, "--context-length", "16", "--batch-size", "6", "--seed", "3"]
HOW += ["--steps", "1000000", "--lr", "0.01", "--warmup-steps", "4"]
SAVING = ["--save-every", "6", "--validate-every", "6"]
QUICK = [sys.executable, "-m", "tests.support.train_process"]
SESSION = [sys.executable, "-m", "tests.support.session_process"]

# Compiling is most of the work, and only process 0 can store compiled programs.
FAST_COMPILATION = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(count, devices, *words):
    """Start the processes of one training, each with its own CPU devices."""
    command = [*QUICK, "train", *words, "--coordinator", f"localhost:{free_port()}"]
    command += ["--processes", count, "--join-timeout", "100000"]
    env = cpu_devices(devices) | FAST_COMPILATION
    return [start_process(*command, "--process-id", n, env=env) for n in range(count)]


def losses(out):
    return [row.get("loss", row.get("val_loss")) for row in read_metrics(out / "metrics.jsonl")]


def checkpoints(out):
    return {int(path.name) for path in (out / "checkpoints").glob("*") if path.name.isdecimal()}


def wait_until(condition, processes):
    while not condition():
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(sample_text(), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_run_survives_a_signal_a_kill_and_other_processes(text, tmp_path):
    """The same run in turn on three sets of processes has the losses of one device."""
    out = tmp_path / "run"
    processes = start(2, 2, "--text", text, "--out", out, *HOW, *SAVING, "--mesh", "data=2,model=2")
    wait_until(lambda: 6 in checkpoints(out), processes)
    processes[1].terminate()
    said, codes = ended(processes)
    assert codes == [128 + signal.SIGTERM] * 2, said
    stopped = max(checkpoints(out))
    assert f"saved after step {stopped}" in said[0]
    assert "step 6: validation loss" in said[0]
    assert "step 6" not in said[1]  # only process 0 reports
    rows = read_metrics(out / "metrics.jsonl")
    assert max(row["step"] for row in rows) == stopped - 1  # nothing is lost
    assert len(checkpoints(out)) == 2  # as with --keep 2

    processes = start(3, 1, "--out", out, "--resume", *SAVING, "--mesh", "data=3", "--scan")
    wait_until(lambda: max(checkpoints(out)) > stopped, processes)
    processes[0].kill()
    said, codes = ended(processes)
    for number in (1, 2):
        message = f"process 0 of 3 died; shutting down process {number}. Restart all"
        assert message in said[number].splitlines()[-1], said
        assert codes[number] == 2

    resumed = start(2, 1, "--out", out, "--resume", "--mesh", "fsdp=2", "--max-seconds", "0.001")
    said, codes = ended(resumed)
    assert codes == [0, 0], said
    found = losses(out)
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row]
    assert steps == list(range(len(steps)))  # each is written once
    assert len(steps) > stopped + 1  # also the second set of processes trained
    assert json.loads((out / "model" / "config.json").read_text())["emb_dim"] == 8

    # Without options of processes, a run is alone in any environment.
    one = tmp_path / "one"
    words = ["--text", text, "--out", one, *HOW, *SAVING]
    alone = start_process(*OBSCURA, "train", *words, env=slurm(1, 2) | FAST_COMPILATION)
    wait_until(lambda: checkpoints(one) and len(losses(one)) >= len(found), [alone])
    alone.terminate()
    assert ended([alone])[1] == [128 + signal.SIGTERM]
    assert found[-1] < found[0] - 0.1
    np.testing.assert_allclose(found, losses(one)[: len(found)], rtol=1e-5)  # 1.8e-07 measured


def start_sessions(mode, count, devices=1):
    address = f"localhost:{free_port()}"
    env = cpu_devices(devices)
    return [start_process(*SESSION, mode, address, count, n, env=env) for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "mode"), [(0, "waiting"), (1, "computing")])
def test_a_killed_process_stops_the_others(victim, mode):
    processes = start_sessions(mode, 3)
    for process in processes:
        while not process.stdout.readline().startswith("["):  # in the session
            assert process.poll() is None, ended(processes)
    processes[victim].kill()
    said, codes = ended(processes)
    for number in {0, 1, 2} - {victim}:
        assert said[number].splitlines()[-1] == (
            f"process {victim} of 3 died; shutting down process {number}. Restart all processes, "
            "with --resume if training had started"
        )
        assert codes[number] == 2


def test_each_process_reads_its_own_rows():
    """Two processes of two devices read a batch of 8 in two micro-batches."""
    said, codes = ended(start_sessions("rows", 2, devices=2))
    assert codes == [0, 0], said
    first, second = (json.loads(lines.splitlines()[-1]) for lines in said)
    assert first == [[0, 1, 4, 5], [0, 1, 4, 5], list(range(8))]
    assert second == [[2, 3, 6, 7], [2, 3, 6, 7], list(range(8))]  # model=4 splits no rows


def slurm(number, count):
    """Return the environment that SLURM gives to a task."""
    return {
        "SLURM_JOB_ID": str(free_port()),  # JAX derives the coordinator's port from it
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(number),
        "SLURM_LOCALID": str(number),
    }


def test_slurm_is_detected():
    shared = slurm(0, 2) | cpu_devices(2)
    numbers = ({"SLURM_PROCID": str(n), "SLURM_LOCALID": str(n)} for n in range(2))
    said, codes = ended([start_process(*SESSION, "rows", env=shared | own) for own in numbers])
    assert codes == [0, 0], said
    for number, lines in enumerate(said):
        assert f"[{number}, 2, 4]" in lines.splitlines()


def test_a_process_that_fails_stops_the_others(text, tmp_path):
    words = ("--text", text, "--out", tmp_path / "run", *HOW, "--mesh", "data=3")
    said, codes = ended(start(2, 1, *words))
    assert codes == [2, 2]
    assert "mesh data=3 needs 3 devices, but there are 2 (cpu)" in said[0].splitlines()[-1]
    assert "process 0 of 2 died; shutting down process 1" in said[1].splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_different_options_are_refused(tmp_path):
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
        (["--coordinator", "{}"], "give --coordinator, --processes and --process-id"),
        (["--distributed"], "no SLURM, Open MPI, Kubernetes or TPU pod was detected"),
    ],
)
def test_a_process_without_the_others_fails_in_one_line(words, message, tmp_path, capsys):
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


def test_another_program_at_the_address_is_recognized():
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"

        def greet():
            with server.accept()[0] as connection:
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
                connection.recv(100)

        threading.Thread(target=greet).start()
        with (
            pytest.raises(ValueError, match="is not a coordinator"),
            distributed_session(address, 2, 1, timeout=100000),
        ):
            pass


def test_programs_that_connect_and_say_nothing_are_ignored():
    address = f"localhost:{free_port()}"
    over, connected = threading.Event(), threading.Event()

    def disturb():
        while not over.wait(0.01):
            with suppress(OSError), socket.create_connection(parse_address(address)):
                connected.set()
                over.wait()

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    with (
        pytest.raises(ValueError, match="waiting for process 1 of 2 to connect"),
        distributed_session(address, 2, 0, timeout=1),
    ):
        pass
    over.set()
    disturbing.join()
    assert connected.is_set()


def test_different_numbers_of_processes_are_refused():
    address = f"localhost:{free_port()}"
    other = start_process(*SESSION, "rows", address, 3, 2)
    message = "process 2 was started with --processes 3, process 0 with --processes 2"
    with (
        pytest.raises(ValueError, match=message),
        distributed_session(address, 2, 0, timeout=100000),
    ):
        pass
    assert f"ValueError: {message}" in other.communicate()[0]


def test_two_processes_with_one_number_are_refused():
    address = f"localhost:{free_port()}"
    others = [start_process(*SESSION, "rows", address, 3, 1) for _ in range(2)]
    with (
        pytest.raises(ValueError, match=r"two processes connected to .* as number 1"),
        distributed_session(address, 3, 0, timeout=100000),
    ):
        pass
    assert all("as number 1; give each its own" in said for said in ended(others)[0])
