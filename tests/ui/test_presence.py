"""Who listens, seen from in front of a server that stands in for gradio's; and what never reaches it."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from anyio import to_thread
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.middleware import Middleware

from tda_demo.ui import presence
from tda_demo.ui.presence import BODY_BYTES, GRACE_SECONDS, Presence, listener_of


class Server:
    """``listeners`` of the calls so far, by the name they gave; ``finish`` ends direct calls, ``bodies`` is seen."""

    def __init__(self) -> None:
        self.listeners: dict[str, Callable[[], bool]] = {}
        self.finish = threading.Event()
        self.bodies: list[bytes] = []
        self.app = FastAPI(middleware=[Middleware(Presence)])
        self.app.post("/gradio_api/run/race")(self._run)
        self.app.post("/gradio_api/queue/join")(self._join)
        self.app.post("/gradio_api/call/race")(self._join)
        self.app.post("/gradio_api/upload")(self._join)
        self.app.get("/gradio_api/queue/data")(self._stream)
        self.app.get("/gradio_api/call/race/{event}")(self._stream)
        self.server = uvicorn.Server(uvicorn.Config(self.app, port=0, log_level="error"))

    async def _hear(self, request: Request) -> dict[str, Any]:
        body = await request.body()
        self.bodies.append(body)
        content = json.loads(body)
        self.listeners[content["name"]] = listener_of(SimpleNamespace(request=request))  # type: ignore[arg-type]
        return content

    async def _run(self, request: Request) -> dict[str, str]:
        await self._hear(request)
        await to_thread.run_sync(self.finish.wait, 10)
        return {}

    async def _join(self, request: Request) -> dict[str, str]:
        return {"event_id": f"event-of-{(await self._hear(request))['name']}"}

    async def _stream(self) -> StreamingResponse:
        async def beats() -> AsyncIterator[str]:
            while True:
                yield "data: {}\n\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(beats(), media_type="text/event-stream")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]

    def post(self, path: str, content: Any) -> http.client.HTTPConnection:
        connection = self.connect()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        connection.request("POST", f"/gradio_api/{path}", body)
        return connection

    def answer(self, path: str, content: Any) -> tuple[int, Any]:
        response = self.post(path, content).getresponse()
        return response.status, json.loads(response.read())

    def stream(self, path: str) -> http.client.HTTPConnection:
        connection = self.connect()
        connection.request("GET", f"/gradio_api/{path}")
        connection.getresponse().read(4)
        return connection


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    thread = threading.Thread(target=served.server.run, daemon=True)
    thread.start()
    eventually(lambda: served.server.started)
    yield served
    served.finish.set()
    served.server.force_exit = served.server.should_exit = True
    thread.join(10)


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_direct_call_is_listened_to_until_the_caller_hangs_up(server: Server) -> None:
    connection = server.post("run/race", {"name": "a"})
    eventually(lambda: "a" in server.listeners)
    assert server.listeners["a"]()
    connection.close()
    eventually(lambda: not server.listeners["a"]())


def test_and_until_it_is_answered(server: Server) -> None:
    server.finish.set()
    assert server.answer("run/race", {"name": "a"})[0] == 200
    eventually(lambda: not server.listeners["a"]())


@pytest.mark.parametrize(
    ("join", "stream"),
    [("queue/join", "queue/data?session_hash=s"), ("call/race", "call/race/event-of-a")],
)
def test_a_queued_call_is_listened_to_while_its_stream_is_open(server: Server, join: str, stream: str) -> None:
    server.answer(join, {"name": "a", "session_hash": "s"})
    listens = server.listeners["a"]
    reading = server.stream(stream)
    time.sleep(2 * GRACE_SECONDS)
    assert listens()
    reading.close()
    eventually(lambda: not listens())


def test_a_queued_call_whose_stream_is_never_opened_is_not(server: Server) -> None:
    server.answer("call/race", {"name": "a", "session_hash": None})
    assert server.listeners["a"](), "its stream may still come"
    eventually(lambda: not server.listeners["a"]())


def test_another_session_s_stream_is_no_listener(server: Server) -> None:
    server.answer("queue/join", {"name": "a", "session_hash": "s"})
    reading = server.stream("queue/data?session_hash=t")
    eventually(lambda: not server.listeners["a"]())
    reading.close()


def test_of_a_caller_nothing_is_known_of_listening_is_assumed() -> None:
    assert listener_of(None)() and listener_of(SimpleNamespace(request=None))()  # type: ignore[arg-type]


def test_a_body_that_is_too_large_is_refused_unread(server: Server) -> None:
    assert server.answer("run/race", b"x" * (BODY_BYTES + 1))[0] == 413
    connection = server.connect()
    connection.putrequest("POST", "/gradio_api/run/race")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    with suppress(OSError):  # the server may close before all is sent
        for _ in range(BODY_BYTES // 65536 + 1):
            connection.send(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        connection.send(b"0\r\n\r\n")
    assert connection.getresponse().status == 413
    assert server.bodies == []


def test_a_body_of_what_is_allowed_arrives_whole(server: Server) -> None:
    server.finish.set()
    content = {"name": "a", "text": "x" * (BODY_BYTES - 100)}
    assert server.answer("run/race", content)[0] == 200
    assert json.loads(server.bodies[0]) == content


@pytest.mark.parametrize("path", ["upload", "upload/", "upload?upload_id=1"])
def test_there_is_no_upload(server: Server, path: str) -> None:
    assert server.answer(path, {"name": "a"})[0] == 404 and server.listeners == {}


@pytest.mark.parametrize("path", ["run/race", "queue/join", "call/race"])
def test_what_gradio_would_fall_over_is_refused(server: Server, path: str) -> None:
    deep = b'{"name": "a", "data": ' + b"[" * 3000 + b"]" * 3000 + b"}"
    assert server.answer(path, deep)[0] == 400
    assert server.answer(path, {"name": "a", "session_hash": ""})[0] == 400
    assert server.listeners == {}
    server.finish.set()
    assert server.answer(path, {"name": "a", "data": "[" * 3000, "session_hash": None})[0] == 200


@given(st.text(st.one_of(st.characters(), st.sampled_from('\ud83d\udfc1\\u"')), max_size=20))
def test_halves_of_surrogate_pairs_are_replaced_and_nothing_else(text: str) -> None:
    body = json.dumps({"data": [text]}).encode()
    replaced = presence._without_halves(body)
    whole = json.loads(body)["data"][0]  # where two halves have met, they are one character
    got = json.loads(replaced)["data"][0]
    assert len(replaced) == len(body)
    assert got == "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in whole)
