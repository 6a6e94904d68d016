"""Several processes as one run: find the others, join `jax.distributed`, and report a death.

If a process dies or never starts, JAX makes the others wait, or aborts them with a stack trace.
`distributed_session` ends them with one line.
"""

import atexit
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from obscura_jax.scale.rendezvous import Rendezvous

_HEARTBEAT_TIMEOUT_S = 40  # until JAX considers a process dead whose connections stay open
_VERDICT_TIMEOUT_S = 10  # for the news that a failed computation is due to a death
_STATUS = re.compile(r"(?!RESOURCE_EXHAUSTED)[A-Z_]{5,}: ")  # starts the errors of JAX's runtime


def _print_error(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def distributed_session(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 60,
    options: Mapping[str, Any] | None = None,
    complain: Callable[[str], object] = _print_error,
) -> Iterator[None]:
    """Context manager: join all processes, so that `jax.devices()` lists the devices of all.

    Enter it before JAX is used. If a process dies, every other one reports which and exits with
    code 2. Arguments that are None are detected by JAX, which knows SLURM, Open MPI, Kubernetes and
    TPU pods. If any is, each process uses one GPU of its host, or those in JAX_LOCAL_DEVICE_IDS.

    Args:
        coordinator: address of process 0, as host:port.
        processes: number of processes.
        process_id: number of this process, from 0.
        timeout: seconds to wait until all processes have connected.
        options: JSON values that must be equal in all processes, by option name.
        complain: called with the report; by default prints it to standard error.

    Raises:
        ValueError: if the address or a number is invalid or cannot be detected, if not all
            processes connect in time (the message gives the address and the missing processes),
            if their options differ, or if a computation of several processes fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides warnings from JAX's connections
    import jax

    address, count, number, gpus = _detect(coordinator, processes, process_id, timeout)
    ending = threading.Lock()  # held by the thread that ends this process

    def end(dead: int) -> None:
        if ending.acquire(blocking=False):
            complain(
                f"process {dead} of {count} died; shutting down process {number}. Restart all "
                "processes, with --resume if training had started"
            )
            os._exit(2)

    same = {"--processes": count, **(options or {})}
    rendezvous = Rendezvous(address, number, same, timeout, end)
    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
    agreed = None
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{rendezvous.jax_port}",
            count,
            number,
            gpus,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(timeout), 1),
            heartbeat_timeout_seconds=_HEARTBEAT_TIMEOUT_S,
        )
        try:
            yield
        except SystemExit as exit_:  # in all processes, as after a signal
            agreed = exit_
        jax.distributed.shutdown()  # waits for all
    except BaseException as error:
        failed = isinstance(error, Exception) and _STATUS.match(str(error))
        if failed:
            with suppress(TimeoutError):
                end(rendezvous.died.result(_VERDICT_TIMEOUT_S))
        ending.acquire()
        rendezvous.close()
        atexit.register(_leave)  # after the error is printed, before JAX's handler, which waits
        if failed:
            first = str(error).splitlines()[0]
            raise ValueError(f"a computation of several processes failed: {first}") from error
        raise
    ending.acquire()
    rendezvous.close("end")
    if agreed:
        raise agreed


def parse_address(text: str) -> tuple[str, int]:
    """Split host:port into host and port; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"invalid coordinator address {text!r}; write it as host:port")
    return host, int(port)


def _detect(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: float
) -> tuple[tuple[str, int], int, int, Any]:
    """Return the address, the count, the number, and the GPUs to use if not JAX's default."""
    gpus = None
    if None in (coordinator, processes, process_id):
        from jax._src.clusters import ClusterEnv  # JAX has no public function that only detects

        coordinator, processes, process_id, gpus = ClusterEnv.auto_detect_unset_distributed_params(
            coordinator, processes, process_id, None, None, max(int(timeout), 1)
        )
    if "JAX_LOCAL_DEVICE_IDS" in os.environ:  # `initialize` reads it
        gpus = None
    if coordinator is None or processes is None or process_id is None:
        raise ValueError(
            "no SLURM, Open MPI, Kubernetes or TPU pod was detected; give --coordinator, "
            "--processes and --process-id"
        )
    if not 0 <= process_id < processes:
        raise ValueError(f"process {process_id} is not one of {processes}; numbers start at 0")
    return parse_address(coordinator), processes, process_id, gpus


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)
