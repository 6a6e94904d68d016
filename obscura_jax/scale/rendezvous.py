"""Connections from each process of a run to process 0, open from before JAX starts until the end.

A process sends its number and options as a line of JSON. Once all have connected, process 0 answers
with the port of JAX's coordinator. A connection that closes early means that its process died.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

EXIT_GRACE_S = 4.0  # for this process to report an error of its own after another one died


class Rendezvous:
    """The connections of process `number`, served by a background thread.

    Args:
        address: host and port of process 0.
        number: number of this process, from 0.
        options: JSON values that must be equal in all processes, by option name. The value of
            --processes is the number of processes.
        timeout: seconds to wait until all processes have connected.
        end: called with the number of a process that died, after `EXIT_GRACE_S` seconds.

    Attributes:
        jax_port: a port of this machine that leads to JAX's coordinator.
        died: a future of the number of the first process that dies.

    Raises:
        ValueError: if not all connect in time (the message gives the address and the missing
            processes), if their options differ, or if another program has the address.
    """

    def __init__(
        self,
        address: tuple[str, int],
        number: int,
        options: Mapping[str, Any],
        timeout: float,
        end: Callable[[int], object],
    ) -> None:
        self.died: Future[int] = Future()
        self._told = False
        self._address, self._number, self._options, self._end = address, number, options, end
        self._at = f"{address[0]}:{address[1]}"
        self._peers: dict[int, asyncio.StreamWriter] = {}
        self._kept: list[Any] = []  # asyncio closes connections that nothing refers to
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        connecting = self._join(timeout) if number else self._accept_all(timeout)
        self.jax_port: int = self._run(connecting)

    def close(self, last_line: str = "") -> None:
        """Close all connections, after sending `last_line`: "end" if the run ended normally."""
        self._run(self._send(last_line, close=True))

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _accept_all(self, timeout: float) -> int:
        count = self._options["--processes"]
        outcome = self._loop.create_future()  # an error, or "" once all have connected

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                number, options = json.loads(await _line(reader))
            except (ValueError, TypeError):
                writer.close()  # an unrelated program
                return
            error = self._mismatch(number, options)
            self._peers[-1 if error else number] = writer
            if not outcome.done() and (error or len(self._peers) == count - 1):
                outcome.set_result(error)
            if not await outcome:
                await self._watch(number, reader)

        server = await asyncio.start_server(serve, None, self._address[1])
        if count == 1:
            outcome.set_result("")
        await asyncio.wait([outcome], timeout=timeout)
        server.close()
        if not outcome.done():
            missing = ", ".join(str(n) for n in range(1, count) if n not in self._peers)
            outcome.set_result(
                f"timed out after {timeout:g} s waiting for process {missing} of {count} to "
                f"connect to {self._at}"
            )
        if error := outcome.result():
            await self._send(f"error {error}", close=True)
            raise ValueError(error)
        with socket.create_server(("", 0)) as free:
            port = int(free.getsockname()[1])
        await self._send(f"port {port}")
        return port

    async def _join(self, timeout: float) -> int:
        try:
            reader, self._peers[0] = await asyncio.wait_for(self._connect(), timeout)
        except TimeoutError:
            raise ValueError(
                f"no coordinator answered at {self._at} within {timeout:g} s; is process 0 "
                "running there?"
            ) from None
        await self._send(json.dumps([self._number, self._options]))
        word, _, rest = (await _line(reader)).partition(" ")  # process 0 limits the wait
        if word == "port":
            self._kept.append(self._loop.create_task(self._watch(0, reader)))
            return await self._relay(self._address[0], int(rest))
        await self._send("", close=True)
        other = f"the program at {self._at} is not a coordinator, or it has exited"
        raise ValueError(rest if word == "error" else other)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while True:
            try:
                return await asyncio.open_connection(*self._address)
            except OSError:  # process 0 does not listen yet
                await asyncio.sleep(0.1)

    def _mismatch(self, number: int, options: Mapping[str, Any]) -> str:
        """Return the reason why process `number` does not belong to this run, or ""."""
        for name, value in self._options.items():
            if (other := options.get(name)) != value:
                return (
                    f"process {number} was started with {name} {other}, process 0 with {name} "
                    f"{value}; all need the same"
                )
        if number in self._peers or not 0 < number < self._options["--processes"]:
            return f"two processes connected to {self._at} as number {number}; give each its own"
        return ""

    async def _watch(self, number: int, reader: asyncio.StreamReader) -> None:
        """Wait until process `number` ends, and set `died` if it did not end normally."""
        word, _, rest = (await _line(reader)).partition(" ")
        if word == "end" or self._told:
            return
        self._told, dead = True, int(rest) if word == "died" else number
        if self._number == 0:  # the others learn it before this process ends
            await self._send(f"died {dead}")
        self.died.set_result(dead)
        await asyncio.sleep(EXIT_GRACE_S)
        self._end(dead)

    async def _relay(self, host: str, port: int) -> int:
        """Forward a local port to `host` and `port`; return its number.

        JAX aborts with a stack trace as soon as its connection to process 0 closes. The local
        connection stays open then, so that the failure can be reported in one line.
        """

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(host, port)
            except OSError:  # not listening yet; JAX retries
                writer.close()
                return
            self._kept += [writer, far_writer]
            await asyncio.gather(copy(reader, far_writer), copy(far_reader, writer))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        return int(server.sockets[0].getsockname()[1])

    async def _send(self, line: str, close: bool = False) -> None:
        """Send a line to all peers; ignore errors from closed connections."""
        for writer in self._peers.values():
            with suppress(OSError):
                writer.write(f"{line}\n".encode())
                await writer.drain()
                if close:
                    writer.close()
                    await writer.wait_closed()


async def _line(reader: asyncio.StreamReader) -> str:
    """Return the next line; "" if the connection closed, or sent no text."""
    try:
        return (await reader.readline()).decode().rstrip("\n")
    except (OSError, ValueError):
        return ""
