"""A local page on which texts are typed, and the models' answers follow (extra `look`).

The page is at an address that only its reader knows: it contains a random token. It asks for what
`Viewer.data` returns, first without ablations, which are a second question. One question is
computed at a time; a new one takes the place of those that wait, and of ablations under way.
"""

import asyncio
import json
import os
import secrets
import socket
from collections.abc import Callable
from functools import partial
from ipaddress import ip_address
from threading import Thread
from typing import Any

from obscura_jax.extras import require
from obscura_jax.look.assemble import look_page
from obscura_jax.look.viewer import Viewer

FIRST_TEXT = "Every effort moves you"
_MOST_BYTES = 64 * 1024  # of a question
_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class ReplacedError(Exception):
    """A newer question took the place of this one."""


class TooLargeError(ValueError):
    """A request is larger than any question."""


class Desk:
    """Answers one question at a time, and of those that wait only the newest."""

    def __init__(self) -> None:
        """Start with no question."""
        self._newest = 0
        self._free = asyncio.Lock()

    async def answer(self, work: Callable[[Callable[[], None]], Any]) -> Any:
        """Return `work(check)`, run in a thread; `check()` raises if a newer question has come.

        Raises:
            ReplacedError: if a newer question has taken the place of this one.
        """
        self._newest += 1
        number = self._newest

        def check() -> None:
            if number != self._newest:
                raise ReplacedError

        async with self._free:
            check()
            return await asyncio.to_thread(work, check)


def application(viewer: Viewer, text: str, token: str, accepts: Callable[[str], bool]) -> Any:
    """Return the page's server, as an ASGI application.

    Args:
        viewer: the models.
        text: the text that the page shows first.
        token: the token in the page's address, `/TOKEN/`.
        accepts: whether to answer a request with this Host header, in lower case.
    """
    require("starlette", "look", "obscura look --serve")
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    desk = Desk()

    def look(asked: str, check: Callable[[], None]) -> Any:
        return viewer.data(viewer.ids(asked), ablate=False)

    def ablations(asked: str, check: Callable[[], None]) -> Any:
        return viewer.ablations(viewer.ids(asked), check)

    first = look_page({**look(text, lambda: None), "served_text": text}, served=True)

    def refusal(request: Request) -> Response | None:
        """Return the answer to a request that does not come from the page, else None."""
        if not accepts(request.headers.get("host", "").lower()):
            return PlainTextResponse("this address is not that of the page\n", 421, _HEADERS)
        if not secrets.compare_digest(request.path_params["token"].encode(), token.encode()):
            return PlainTextResponse("open the address that obscura printed\n", 403, _HEADERS)
        return None

    async def page(request: Request) -> Response:
        return refusal(request) or HTMLResponse(first, headers=_HEADERS)

    def question(work: Callable[[str, Callable[[], None]], Any]) -> Any:
        async def answer(request: Request) -> Response:
            if refused := refusal(request):
                return refused
            try:
                asked = _text_in(await _body(request))
                found = await desk.answer(lambda check: work(asked, check))
            except ReplacedError:
                return JSONResponse({"replaced": True}, 409, _HEADERS)
            except ValueError as error:
                status = 413 if isinstance(error, TooLargeError) else 400
                return JSONResponse({"error": str(error)}, status, _HEADERS)
            return JSONResponse(found, headers=_HEADERS)

        return answer

    routes = [
        Route("/{token}/", page),
        Route("/{token}/look", question(look), methods=["POST"]),
        Route("/{token}/ablations", question(ablations), methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    return app


async def _body(request: Any) -> bytes:
    """Return the body of a request, of which no more is read than is accepted."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise TooLargeError(f"the text is too long; send at most {_MOST_BYTES} bytes")
    return body


def _text_in(body: bytes) -> str:
    try:
        text = json.loads(body)["text"]
    except (ValueError, LookupError, TypeError, RecursionError):
        text = None
    if not isinstance(text, str):
        raise ValueError('a question is JSON with the text, such as {"text": "Every effort"}')
    return text


def host_check(host: str, port: int) -> Callable[[str], bool]:
    """Return whether the server at an address answers a request with a Host header.

    Other names than its own are refused, so that no web site can reach it by giving its own name
    this address (DNS rebinding). On all addresses, any numeric one is its own.
    """
    own = {f"{name}:{port}" for name in (_in_url(host.lower()), "localhost")}
    own |= {f"{address}:{port}" for address in ("127.0.0.1", "[::1]")}

    def accepts(header: str) -> bool:
        if header in own:
            return True
        name, _, number = header.rpartition(":")
        return _is_any(host) and number == str(port) and _is_address(name.strip("[]"))

    return accepts


def serve(
    viewer: Viewer, text: str, *, host: str, port: int, announce: Callable[[str], object]
) -> None:
    """Serve the page until the process ends.

    Args:
        viewer: the models.
        text: the text that the page shows first; by default "Every effort moves you".
        host: the address to serve on. Only 127.0.0.1, localhost and ::1 keep the page on this
            computer.
        port: the port; 0 takes a free one.
        announce: receives the page's address once it can be opened.

    Raises:
        ValueError: if the text does not fit, or the address cannot be served on.
        MissingExtraError: if the extra `look` is missing.
    """
    require("uvicorn", "look", "obscura look --serve")
    import uvicorn

    text = text or FIRST_TEXT
    with _listen(host, port) as listener:
        port = listener.getsockname()[1]
        token = secrets.token_urlsafe(16)
        app = application(viewer, text, token, host_check(host, port))
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off")
        announce(f"http://{_in_url(host)}:{port}/{token}/")
        # In a thread of its own, uvicorn leaves signals to this process.
        run = partial(uvicorn.Server(config).run, sockets=[listener])
        thread = Thread(target=run, daemon=True)
        thread.start()
        thread.join()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0
        why = os.strerror(number) if number > 0 else getattr(error, "strerror", str(error))
        raise ValueError(
            f"cannot serve on {host}, port {port}: {why}; choose another --port, or 0 for a free "
            "one"
        ) from error


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _is_any(host: str) -> bool:
    return _is_address(host) and ip_address(host).is_unspecified


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
