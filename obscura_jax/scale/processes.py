"""Many processes as one run: met at an address, joined by `jax.distributed`, and watched.

JAX lets a process wait for ever, or ends it with a stack trace, where another has died or never
came. So they meet at a socket of our own first, which stays open: its end tells of a death.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from obscura_jax.scale.relay import relayed

_GRACE = 2.0  # seconds for a process to say who it is, or what made it end
_HEARTBEAT = 40  # seconds without which JAX holds a process for dead: for what no socket notices


@contextmanager
def joined(coordinator: str, processes: int, process: int, timeout: float = 60) -> Iterator[None]:
    """Within, `jax.devices()` are those of all processes.

    To be entered before JAX is used. Where one of the processes dies, every other prints a line
    that says which, and ends with exit code 2.

    Args:
        coordinator: host and port where process 0 runs, as host:port.
        processes: how many there are.
        process: which one this is, from 0.
        timeout: seconds to wait for all to come.

    Raises:
        ValueError: for an address or numbers that make no sense, and when not all have come in
            time, with the address and who is missing.
    """
    host, port = _address(coordinator)
    if not 0 <= process < processes:
        raise ValueError(f"process {process} is not one of {processes}: they count from 0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else warnings of JAX's own connections
    deadline = time.monotonic() + timeout
    if process == 0:
        peers = _gathered(host, port, processes, deadline, timeout)
        jax_port = _free_port()
        for peer in peers.values():
            peer.say(f"go {jax_port}")
    else:
        peer, jax_port = _introduced(host, port, processes, process, deadline, timeout)
        peers = {0: peer}
        host, jax_port = "127.0.0.1", relayed(host, jax_port)
    import jax

    watch = _Watch(peers, process, processes)
    jax.distributed.initialize(
        f"{host}:{jax_port}",
        processes,
        process,
        initialization_timeout=max(int(timeout), 1),
        heartbeat_timeout_seconds=_HEARTBEAT,
    )
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        time.sleep(3 * _GRACE)  # the watch ends the process, where another has died
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"the {processes} processes cannot reach one another: {first}") from error
    except BaseException:
        watch.over = True  # this process says itself why it ends
        raise
    jax.distributed.shutdown()  # waits for all
    watch.over = True
    for peer in peers.values():
        peer.say("end")


class _Peer:
    """A connection, over which lines are said and heard."""

    def __init__(self, connection: socket.socket, deadline: float | None) -> None:
        self._connection = connection
        self.wait_until(deadline)
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")

    def wait_until(self, deadline: float | None) -> None:
        """How long `hear` waits, in `time.monotonic`; None is for ever."""
        left = None if deadline is None else max(deadline - time.monotonic(), 0.1)
        self._connection.settimeout(left)

    def say(self, line: str) -> None:
        """Send a line; who has gone need not hear it."""
        with suppress(OSError):
            self._connection.sendall(f"{line}\n".encode())

    def hear(self) -> str:
        """The next line; "" where there is none any more, or none in time."""
        try:
            return self._lines.readline(1000).rstrip("\n")
        except (OSError, ValueError):
            return ""

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._connection.close()


class _Watch:
    """A thread for each connection, which waits for its end."""

    def __init__(self, peers: dict[int, _Peer], process: int, processes: int) -> None:
        self.over = False
        self._peers, self._process, self._processes = peers, process, processes
        for number, peer in peers.items():
            peer.wait_until(None)
            threading.Thread(target=self._wait, args=(number, peer), daemon=True).start()

    def _wait(self, number: int, peer: _Peer) -> None:
        heard = peer.hear()
        if heard == "end" or self.over:
            return
        dead = int(heard.removeprefix("dead ")) if heard.startswith("dead ") else number
        if self._process == 0:
            for other, connection in self._peers.items():
                if other != dead:
                    connection.say(f"dead {dead}")
        time.sleep(_GRACE)
        if not self.over:
            print(
                f"obscura train: process {dead} of {self._processes} has ended, and so does "
                f"process {self._process}: start all again, with --resume if training had begun",
                file=sys.stderr,
                flush=True,
            )
            os._exit(2)


def _gathered(
    host: str, port: int, processes: int, deadline: float, timeout: float
) -> dict[int, _Peer]:
    """Process 0: the connections of all others, or an error that each of them is told as well."""
    peers: dict[int, _Peer] = {}
    try:
        server = socket.create_server(("", port), reuse_port=False, backlog=processes)
    except OSError as error:
        raise ValueError(f"{host}:{port} cannot be listened at: {error.strerror}") from error
    problem = ""
    with server:
        while len(peers) < processes - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                missing = sorted({*range(1, processes)} - peers.keys())
                problem = (
                    f"process {', '.join(map(str, missing))} of {processes} has not come to "
                    f"{host}:{port} within {timeout:g} s"
                )
                break
            peer = _Peer(connection, min(deadline, time.monotonic() + _GRACE))
            introduced = re.fullmatch(r"obscura (\d+) (\d+)", peer.hear())
            if not introduced:
                peer.close()  # somebody else's
                continue
            number, count = map(int, introduced.groups())
            if count != processes:
                problem = (
                    f"process {number} was started as one of {count}, process 0 of {processes}"
                )
            elif number in peers:
                problem = f"process {number} has come to {host}:{port} twice"
            peers[-1 if problem else number] = peer
    for peer in peers.values():
        if problem:
            peer.say(f"no {problem}")
            peer.close()
    if problem:
        raise ValueError(problem)
    return peers


def _introduced(
    host: str, port: int, processes: int, process: int, deadline: float, timeout: float
) -> tuple[_Peer, int]:
    """Another process: the connection to process 0, and the port of JAX's own service there."""
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=2)
            break
        except socket.gaierror as error:
            raise ValueError(f"the coordinator's host {host!r} is not known: {error}") from error
        except OSError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no coordinator answers at {host}:{port} within {timeout:g} s: "
                    "is process 0 running there?"
                ) from None
            time.sleep(0.1)
    peer = _Peer(connection, deadline + 5)
    peer.say(f"obscura {process} {processes}")
    answer, _, rest = peer.hear().partition(" ")
    if answer == "go" and rest.isdecimal():
        return peer, int(rest)
    peer.close()
    if answer == "no":
        raise ValueError(rest)
    raise ValueError(f"who answers at {host}:{port} is no coordinator, or has ended")


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"a coordinator is written host:port, got {coordinator!r}")
    return host, int(port)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
