"""The local page answers its reader, and nobody else; the newest question comes first."""

import asyncio
import html
import http.client
import json
import re
import signal
import socket
import threading

import pytest

from obscura_jax.look.page_data import unpack
from obscura_jax.look.server import Desk, ReplacedError, host_check, serve
from tests.support import processes
from tests.support.look_server import TOKEN, serving, tiny_viewer


@pytest.fixture(scope="module")
def viewer():
    return tiny_viewer()


@pytest.fixture(scope="module")
def port(viewer):
    with serving(viewer, "A list is") as port:
        yield port


def ask(port, method, path, body=None, **headers):
    """Return the status, the headers and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read().decode()
    finally:
        connection.close()


def question(port, what, text, **headers):
    status, _, body = ask(port, "POST", f"/{TOKEN}/{what}", json.dumps({"text": text}), **headers)
    return status, json.loads(body)


def test_the_page_has_the_first_text_and_may_ask_only_its_server(port):
    status, headers, page = ask(port, "GET", f"/{TOKEN}/")
    assert status == 200
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "connect-src 'self'" in html.unescape(page)
    assert '"text":"A"' in page


def test_a_text_is_answered_without_and_then_with_ablations(port, viewer):
    status, data = question(port, "look", "The if statement")
    assert status == 200
    assert "".join(token["text"] for token in data["tokens"]) == "The if statement"
    assert data["models"][0]["ablation"] is None
    status, ablations = question(port, "ablations", "The if statement")
    expected = viewer.data(viewer.ids("The if statement"))["models"][0]["ablation"]
    found = unpack(ablations[0]["heads"])
    assert found.tolist() == unpack(expected["heads"]).tolist()
    assert found.any()


@pytest.mark.parametrize("path", ["/", "/look", "/wrong/", "/wrong/look", "//", "/%00/"])
def test_without_the_token_there_is_nothing(port, path):
    for method in ("GET", "POST"):
        status, _, body = ask(port, method, path, '{"text": "A"}')
        assert status in (403, 404, 405)
        assert "tokens" not in body


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1:1", ""])
def test_a_request_for_another_host_is_refused(port, host):
    host = host.format(port=port)
    assert ask(port, "GET", f"/{TOKEN}/", Host=host)[0] in (400, 421)
    assert question(port, "look", "A", Host=f"localhost:{port}")[0] == 200


def test_hosts_of_an_address():
    own = host_check("127.0.0.1", 80)
    assert own("127.0.0.1:80")
    assert own("localhost:80")
    assert not own("192.168.0.7:80")
    wildcard = host_check("0.0.0.0", 80)
    assert wildcard("192.168.0.7:80")
    assert host_check("::", 80)("[fe80::1]:80")
    assert not wildcard("evil.example:80")
    assert not wildcard("192.168.0.7:81")
    assert host_check("box.lan", 80)("box.lan:80")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("word " * 300, "300 tokens|at most 256"),
    ],
)
def test_a_text_that_does_not_fit_is_one_line(port, text, message):
    for what in ("look", "ablations"):
        status, answer = question(port, what, text)
        assert status == 400
        assert re.search(message, answer["error"])


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"text": 3}', "[" * 60_000, "\udcff"])
def test_a_body_that_is_no_question_is_refused(port, body):
    encoded = body.encode("utf-8", "surrogateescape")
    status, _, answer = ask(port, "POST", f"/{TOKEN}/look", encoded)
    assert status == 400
    assert "a question is JSON" in json.loads(answer)["error"]


def test_a_body_of_100_mb_is_not_read(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.putrequest("POST", f"/{TOKEN}/look")
    connection.putheader("Content-Length", str(100_000_000))
    connection.endheaders()
    connection.send(b"x" * 70_000)  # no more is needed for the answer
    answer = connection.getresponse()
    assert answer.status == 413
    assert "at most 65536 bytes" in json.loads(answer.read())["error"]
    connection.close()
    assert question(port, "look", "A")[0] == 200


def test_the_newest_question_takes_the_place_of_others():
    async def scene():
        desk, order = Desk(), []
        begun, go_on = threading.Event(), threading.Event()

        def long(check):
            order.append("long")
            begun.set()
            go_on.wait()
            check()
            return "long"

        def short(name):
            def work(check):
                order.append(name)
                return name

            return work

        first = asyncio.create_task(desk.answer(long))
        await asyncio.to_thread(begun.wait)
        second = asyncio.create_task(desk.answer(short("second")))
        third = asyncio.create_task(desk.answer(short("third")))
        await asyncio.sleep(0)
        go_on.set()
        results = await asyncio.gather(first, second, third, return_exceptions=True)
        return order, results

    order, (first, second, third) = asyncio.run(scene())
    assert order == ["long", "third"]
    assert isinstance(first, ReplacedError)
    assert isinstance(second, ReplacedError)
    assert third == "third"


def test_a_port_in_use_is_one_line(viewer):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port}: .*in use; choose another --port"):
            serve(viewer, "A", host="127.0.0.1", port=port, announce=print)
    with pytest.raises(ValueError, match=r"cannot serve on nowhere\.invalid"):
        serve(viewer, "A", host="nowhere.invalid", port=0, announce=print)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted():
    process = processes.start(*processes.OBSCURA, "look", "tiny", "--serve", "--port", "0")
    address = process.stdout.readline().strip()
    port, token = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/([\w-]{22})/", address).groups()
    assert ask(int(port), "GET", f"/{token}/")[0] == 200
    process.send_signal(signal.SIGINT)
    said, codes = processes.ended([process])
    assert (said, codes) == ([""], [130])
