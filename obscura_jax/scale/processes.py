"""Many processes as one run: met at an address, joined by `jax.distributed`, and watched.

JAX lets a process wait for ever, or ends it with a stack trace, where another has died or never
came. The connections over which they met stay open: the end of one tells of a death.
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
from obscura_jax.scale.rendezvous import Member, Peer, gather, introduce, parse_address

_GRACE = 4.0  # seconds for a process to say itself what made it end
_HEARTBEAT = 40  # seconds without which JAX holds a process for dead: for what no socket notices


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
    """Within, `jax.devices()` are those of all processes.

    To be entered before JAX is used. Where one of the processes dies, every other complains, saying
    which, and ends with exit code 2.

    Args:
        coordinator: host and port where process 0 runs, as host:port.
        processes: how many there are.
        process: which one this is, from 0.
        timeout: seconds to wait for all to come.
        options: what must be the same for all of them, as JSON: option -> value.
        complain: called with the line; by default it goes to standard error.

    Raises:
        ValueError: for an address or numbers that make no sense, when not all have come in time,
            with the address and who is missing, and for one that has other options.
    """
    address = parse_address(coordinator)
    if not 0 <= process < processes:
        raise ValueError(f"process {process} is not one of {processes}: they count from 0")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # else warnings of JAX's own connections
    own = Member(process, processes, options or {})
    if process == 0:
        peers, jax_port = gather(address, own, timeout), _free_port()
        for peer in peers.values():
            peer.say(f"go {jax_port}")
    else:
        peer, its_port = introduce(address, own, timeout)
        peers, jax_port = {0: peer}, relayed(address[0], its_port)
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # else SIGTERM is the service's
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
        watch.over = True  # all have agreed to end
        raise
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            watch.give_up()
            raise
        time.sleep(2 * _GRACE)  # the watch ends the process, where another has died
        watch.give_up()
        first = (str(error).splitlines() or [""])[0]
        raise ValueError(f"what the processes ran together has failed: {first}") from error
    except BaseException:
        watch.give_up()
        raise
    jax.distributed.shutdown()  # waits for all
    watch.over = True
    for peer in peers.values():
        peer.say("end")


class _Watch:
    """A thread for each connection, which waits for its end."""

    def __init__(self, peers: dict[int, Peer], own: Member, complain: Callable[[str], Any]) -> None:
        self.over = False
        self._peers, self._own, self._complain = peers, own, complain
        for number, peer in peers.items():
            peer.wait(None)
            threading.Thread(target=self._wait, args=(number, peer), daemon=True).start()

    def give_up(self) -> None:
        """This process ends, and says itself why; it leaves without waiting for the others."""
        self.over = True
        for peer in self._peers.values():
            peer.hang_up()
        atexit.register(_leave)  # after what the error prints, before JAX, which would wait

    def _wait(self, number: int, peer: Peer) -> None:
        heard = peer.hear()
        if heard == "end" or self.over:
            return
        dead = int(heard.removeprefix("dead ")) if heard.startswith("dead ") else number
        if self._own.number == 0:
            for other, connection in self._peers.items():
                if other != dead:
                    connection.say(f"dead {dead}")
        time.sleep(_GRACE)
        if not self.over:
            self._complain(
                f"process {dead} of {self._own.count} has ended, and so does process "
                f"{self._own.number}: start all again, with --resume if training had begun"
            )
            os._exit(2)


def _leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
