"""A local port that relays to another machine's port and stays open if the process there dies.

JAX aborts with a stack trace as soon as its connection to process 0 closes. The relay hides this,
so that `processes` can report the failure in one line.
"""

import socket
import threading
from contextlib import suppress


def relayed(host: str, port: int) -> int:
    """Open a port on 127.0.0.1 that forwards connections to host and port; return its number."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server, host, port), daemon=True).start()
    return int(server.getsockname()[1])


def _serve(server: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection((host, port))
        except OSError:  # not listening yet; the client retries
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Copy until either socket ends; close neither."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
