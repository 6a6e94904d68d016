"""The rendezvous of a run's processes before JAX starts, over sockets that stay open.

Each process sends one line to process 0 to identify itself. Once all have connected, process 0
answers "go PORT"; if something does not match, it answers "no" and the reason.
"""

import json
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_HELLO_TIMEOUT_S = 4.0  # seconds for a new connection to identify itself


@dataclass(frozen=True)
class ProcessInfo:
    """A process: its number, the number of processes, and the options that must be equal in all."""

    number: int
    count: int
    options: Mapping[str, Any] = field(default_factory=dict)


class Peer:
    """A connection that sends and receives lines."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self.wait(seconds)
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")

    def wait(self, seconds: float | None) -> None:
        """Set the timeout of `hear`; None waits indefinitely."""
        self._connection.settimeout(seconds)

    def say(self, line: str) -> None:
        """Send one line; ignore errors from a closed connection."""
        with suppress(OSError):
            self._connection.sendall(f"{line}\n".encode())

    def hear(self) -> str:
        """Return the next line; "" if the connection closed or the timeout passed."""
        try:
            return self._lines.readline(10_000).rstrip("\n")
        except (OSError, ValueError):
            return ""

    def hang_up(self) -> None:
        """Shut the connection down; another thread may still be in `hear`."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._lines.close()
        self._connection.close()


def parse_address(text: str) -> tuple[str, int]:
    """Split host:port into host and port; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"invalid coordinator address {text!r}; write it as host:port")
    return host, int(port)


def gather(address: tuple[str, int], own: ProcessInfo, timeout: float) -> dict[int, Peer]:
    """Accept connections from all other processes, as process 0, and return them by number.

    Raises:
        ValueError: if not all connect in time, or one does not match. The processes that have
            connected receive the message.
    """
    place, deadline = "{}:{}".format(*address), time.monotonic() + timeout
    peers: dict[int, Peer] = {}
    try:
        server = socket.create_server(("", address[1]), reuse_port=False, backlog=own.count)
    except OSError as error:
        raise ValueError(f"cannot listen at {place}: {error.strerror}") from error
    problem = ""
    with server:
        while len(peers) < own.count - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = Peer(server.accept()[0], _HELLO_TIMEOUT_S)
            except TimeoutError:
                missing = sorted({*range(1, own.count)} - peers.keys())
                problem = (
                    f"timed out after {timeout:g} s waiting for process "
                    f"{', '.join(map(str, missing))} of {own.count} to connect to {place}"
                )
                break
            member = _member(peer.hear())
            if member is None:
                peer.close()  # an unrelated connection
                continue
            problem = _option_mismatch(member, own)
            if not problem and member.number in peers:
                problem = (
                    f"two processes connected to {place} with number {member.number}; "
                    "give each its own"
                )
            peers[-1 if problem else member.number] = peer
    if problem:
        for peer in peers.values():
            peer.say(f"no {problem}")
            peer.close()
        raise ValueError(problem)
    return peers


def introduce(address: tuple[str, int], own: ProcessInfo, timeout: float) -> tuple[Peer, int]:
    """Connect to process 0; return the connection and the port that process 0 names.

    Raises:
        ValueError: if no coordinator answers in time, or process 0 reports a mismatch.
    """
    place, deadline = "{}:{}".format(*address), time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(address, timeout=2)
            break
        except socket.gaierror as error:
            raise ValueError(f"cannot resolve the coordinator in {place}: {error}") from error
        except OSError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no coordinator answered at {place} within {timeout:g} s; "
                    "is process 0 running there?"
                ) from None
            time.sleep(0.1)
    peer = Peer(connection, timeout + _HELLO_TIMEOUT_S)  # process 0 may have only just started
    peer.say(f"obscura {own.number} {own.count} {json.dumps(own.options)}")
    answer, _, rest = peer.hear().partition(" ")
    if answer == "go" and rest.isdecimal():
        return peer, int(rest)
    peer.close()
    if answer == "no":
        raise ValueError(rest)
    raise ValueError(f"the program at {place} is not a coordinator, or it has exited")


def _member(line: str) -> ProcessInfo | None:
    """Parse the line with which a process identifies itself; None for any other line."""
    said = re.fullmatch(r"obscura (\d+) (\d+) (\{.*\})", line)
    with suppress(ValueError):
        return ProcessInfo(int(said[1]), int(said[2]), json.loads(said[3])) if said else None
    return None


def _option_mismatch(member: ProcessInfo, own: ProcessInfo) -> str:
    """Return the reason why a process does not belong to this run, or "" if it does."""
    who = f"process {member.number} was started"
    if member.count != own.count:
        return f"{who} as one of {member.count}, process 0 as one of {own.count}; all need the same"
    for name, value in own.options.items():
        if (theirs := member.options.get(name)) != value:
            return f"{who} with {name} {theirs}, process 0 with {name} {value}; all need the same"
    return ""
