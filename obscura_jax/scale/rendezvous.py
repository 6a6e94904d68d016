"""Where the processes of a run meet, before JAX: at a socket, which stays open between them.

Each says who it is to process 0, on one line; once all have come process 0 answers "go PORT", or,
if something does not fit, "no ..." and why.
"""

import json
import re
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

_HELLO = 4.0  # seconds for who comes to say who it is


@dataclass(frozen=True)
class Member:
    """What a process says of itself: its number, how many there are, what all must have alike."""

    number: int
    count: int
    options: Mapping[str, Any] = field(default_factory=dict)


class Peer:
    """A connection, over which lines are said and heard."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self.wait(seconds)
        self._lines = connection.makefile("r", encoding="utf-8", newline="\n")

    def wait(self, seconds: float | None) -> None:
        """How long `hear` waits; None is for ever."""
        self._connection.settimeout(seconds)

    def say(self, line: str) -> None:
        """Send a line; who has gone need not hear it."""
        with suppress(OSError):
            self._connection.sendall(f"{line}\n".encode())

    def hear(self) -> str:
        """The next line; "" where there is none any more, or none in time."""
        try:
            return self._lines.readline(10_000).rstrip("\n")
        except (OSError, ValueError):
            return ""

    def hang_up(self) -> None:
        """End it, while somebody may be hearing."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._lines.close()
        self._connection.close()


def parse_address(text: str) -> tuple[str, int]:
    """Host and port of host:port; ValueError for anything else."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"a coordinator is written host:port, got {text!r}")
    return host, int(port)


def gather(address: tuple[str, int], own: Member, timeout: float) -> dict[int, Peer]:
    """Process 0: the connections of all others.

    Raises:
        ValueError: when not all come in time, or one does not fit; those that have come are told.
    """
    place, deadline = "{}:{}".format(*address), time.monotonic() + timeout
    peers: dict[int, Peer] = {}
    try:
        server = socket.create_server(("", address[1]), reuse_port=False, backlog=own.count)
    except OSError as error:
        raise ValueError(f"{place} cannot be listened at: {error.strerror}") from error
    problem = ""
    with server:
        while len(peers) < own.count - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                peer = Peer(server.accept()[0], _HELLO)
            except TimeoutError:
                missing = sorted({*range(1, own.count)} - peers.keys())
                problem = (
                    f"process {', '.join(map(str, missing))} of {own.count} has not come to "
                    f"{place} within {timeout:g} s"
                )
                break
            member = _member(peer.hear())
            if member is None:
                peer.close()  # somebody else's
                continue
            problem = _misfit(member, own)
            if not problem and member.number in peers:
                problem = f"process {member.number} has come to {place} twice"
            peers[-1 if problem else member.number] = peer
    if problem:
        for peer in peers.values():
            peer.say(f"no {problem}")
            peer.close()
        raise ValueError(problem)
    return peers


def introduce(address: tuple[str, int], own: Member, timeout: float) -> tuple[Peer, int]:
    """Another process: the connection to process 0, and the port that it names.

    Raises:
        ValueError: when nobody answers in time, or process 0 says what does not fit.
    """
    place, deadline = "{}:{}".format(*address), time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(address, timeout=2)
            break
        except socket.gaierror as error:
            raise ValueError(f"the coordinator's host in {place} is not known: {error}") from error
        except OSError:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"no coordinator answers at {place} within {timeout:g} s: "
                    "is process 0 running there?"
                ) from None
            time.sleep(0.1)
    peer = Peer(connection, timeout + _HELLO)  # process 0 may have begun just now
    peer.say(f"obscura {own.number} {own.count} {json.dumps(own.options)}")
    answer, _, rest = peer.hear().partition(" ")
    if answer == "go" and rest.isdecimal():
        return peer, int(rest)
    peer.close()
    if answer == "no":
        raise ValueError(rest)
    raise ValueError(f"who answers at {place} is no coordinator, or has ended")


def _member(line: str) -> Member | None:
    """Who a line introduces, if it does."""
    said = re.fullmatch(r"obscura (\d+) (\d+) (\{.*\})", line)
    with suppress(ValueError):
        return Member(int(said[1]), int(said[2]), json.loads(said[3])) if said else None
    return None


def _misfit(member: Member, own: Member) -> str:
    """Why a process is not one of this process's run; nothing where it is."""
    who = f"process {member.number} was started"
    if member.count != own.count:
        return f"{who} as one of {member.count}, process 0 of {own.count}"
    for name, value in own.options.items():
        if (theirs := member.options.get(name)) != value:
            return f"{who} with {name} {theirs}, process 0 with {name} {value}: all need the same"
    return ""
