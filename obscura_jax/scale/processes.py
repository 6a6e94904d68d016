"""Several processes as one run: they rendezvous, join `jax.distributed`, and watch each other.

If a process dies or never starts, JAX makes the others wait indefinitely or abort with a stack
trace. The rendezvous sockets therefore stay open: a closed socket means that the peer died.
"""

import atexit
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from obscura_jax.scale.relay import relayed
from obscura_jax.scale.rendezvous import Peer, ProcessInfo, gather, introduce, parse_address

_EXIT_GRACE_S = 4.0  # seconds for a process to report its own error before it is ended
_HEARTBEAT = 40  # seconds of silence before JAX considers a process dead, if no socket closes


def _complain(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def joined(
    coordinator: str,
    processes: int,
    process: int,
    *,
    timeout: float = 60,
    options: Mapping[str, Any] | None = None,
    complain: Callable[[str], object] = _complain,
) -> Iterator[None]:
    """Context manager: join all processes, so that `jax.devices()` lists the devices of all.

    Enter it before JAX is used. If a process dies, every other one reports which and exits with
    code 2.

    Args:
        coordinator: address of process 0, as host:port.
        processes: number of processes.
        process: number of this process, from 0.
        timeout: seconds to wait until all processes have connected.
        options: JSON values that must be equal in all processes, by option name.
        complain: called with the report; by default prints it to standard error.

    Raises:
        ValueError: if the address or a number is invalid, if not all processes connect in time
            (the message gives the address and the missing processes), if their options differ,
            or if a computation of several processes fails.
    """
    address = parse_address(coordinator)
    if not 0 <= process < processes:
        raise ValueError(f"process {process} is not one of {processes}; numbers start at 0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides warnings from JAX's connections
    own = ProcessInfo(process, processes, options or {})
    if process == 0:
        peers, jax_port = gather(address, own, timeout), _free_port()
        for peer in peers.values():
            peer.say(f"go {jax_port}")
    else:
        peer, its_port = introduce(address, own, timeout)
        peers, jax_port = {0: peer}, relayed(address[0], its_port)
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it would handle SIGTERM
    watch = _Watch(peers, own, complain)
    try:
        jax.distributed.initialize(
            f"127.0.0.1:{jax_port}",
            processes,
            process,
            initialization_timeout=max(int(timeout), 1),
            heartbeat_timeout_seconds=_HEARTBEAT,
        )
        yield
    except SystemExit:
        watch.over = True  # all processes have agreed to exit
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            watch.give_up()
            raise
        time.sleep(2 * _EXIT_GRACE_S)  # if another process died, the watch ends this one
        watch.give_up()
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"a computation of several processes failed: {first}") from error
    except BaseException:
        watch.give_up()
        raise
    jax.distributed.shutdown()  # waits for all
    watch.over = True
    for peer in peers.values():
        peer.say("end")


class _Watch:
    """One thread per connection, which waits until the connection closes."""

    def __init__(
        self, peers: dict[int, Peer], own: ProcessInfo, complain: Callable[[str], Any]
    ) -> None:
        self.over = False
        self._peers, self._own, self._complain = peers, own, complain
        for number, peer in peers.items():
            peer.wait(None)
            threading.Thread(target=self._wait, args=(number, peer), daemon=True).start()

    def give_up(self) -> None:
        """Let this process report its own error and exit without waiting for the others."""
        self.over = True
        for peer in self._peers.values():
            peer.hang_up()
        atexit.register(_leave)  # after the error is printed, before JAX's handler, which waits

    def _wait(self, number: int, peer: Peer) -> None:
        heard = peer.hear()
        if heard == "end" or self.over:
            return
        dead = int(heard.removeprefix("dead ")) if heard.startswith("dead ") else number
        if self._own.number == 0:
            for other, connection in self._peers.items():
                if other != dead:
                    connection.say(f"dead {dead}")
        time.sleep(_EXIT_GRACE_S)
        if not self.over:
            self._complain(
                f"process {dead} of {self._own.count} died; shutting down process "
                f"{self._own.number}. Restart all processes, with --resume if training had started"
            )
            os._exit(2)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
