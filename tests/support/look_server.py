"""A server of `obscura look --serve` in a thread of the tests."""

import socket
import threading
from contextlib import contextmanager

import uvicorn

from obscura_jax import load_model
from obscura_jax.interop.model_tokenizer import load_tokenizer
from obscura_jax.look.server import application, host_check
from obscura_jax.look.viewer import Opened, Viewer

TOKEN = "not-to-be-guessed"


def tiny_viewer():
    """Return a viewer of the shipped model."""
    model, params = load_model("tiny")
    return Viewer([Opened("tiny", model, params, load_tokenizer("tiny", model.cfg))])


@contextmanager
def serving(viewer, text):
    """Context manager: serve a page on a free port, with `TOKEN` in its address; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = application(viewer, text, TOKEN, host_check("127.0.0.1", port))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield port
        server.should_exit = True
        thread.join()
