"""A local port that leads to another machine's, and stays open when that one's process has died.

JAX ends a process with a stack trace as soon as its connection to process 0 closes. Behind a relay
it is not told, and `processes` says in words what has happened.
"""

import socket
import threading
from contextlib import suppress


def relayed(host: str, port: int) -> int:
    """The number of a port on 127.0.0.1 from which connections go on to host and port."""
    server = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=_serve, args=(server, host, port), daemon=True).start()
    return int(server.getsockname()[1])


def _serve(server: socket.socket, host: str, port: int) -> None:
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection((host, port))
        except OSError:  # not there yet: who called tries again
            near.close()
            continue
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=_copy, args=(source, sink), daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    """Until the end of either; neither is closed."""
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
