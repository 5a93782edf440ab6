"""Who listens to what the page does for them, on every route; and what is refused before gradio reads it.

A run belongs to a connection. A direct call (``run/...``) is listened to while its POST is open. A call through the
queue is answered at once, and listened to while a stream of its session or of its event is open: the browser's tab or
a client keeps one. ``Presence`` stands in front of gradio's routes, sees both, and puts a ``Listener`` into the request
that the handler gets.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import gradio as gr

if TYPE_CHECKING:
    from collections.abc import Iterator

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

BODY_BYTES = 256 * 1024  # all that the page's own handlers take fits many times
GRACE_SECONDS = 1.6  # between the POST and the stream it is followed by, or between two streams of a session
_STUCK_SECONDS = 5.0  # a frame that its reader has not taken for so long has none

_KEY = "tda_demo.listener"
_DIRECT = re.compile(r"/gradio_api/(run|api)/[^/]+/?$")
_QUEUED = re.compile(r"/gradio_api/(queue/join|call/(v2/)?[^/]+)/?$")
_SESSION_STREAM = re.compile(r"/gradio_api/queue/data/?$")
_EVENT_STREAM = re.compile(r"/gradio_api/call/(?:v2/)?[^/]+/([^/]+)/?$")
_CLOSED = re.compile(r"/gradio_api/upload/?$")  # the page takes no files

# An escape in a JSON text: a surrogate pair, a half of one alone, or another.
_ESCAPES = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>\\u[dD][89a-fA-F]..)|\\.", re.DOTALL)
_EMPTY_SESSION = re.compile(rb'"session_hash"\s*:\s*""')
_BRACKETS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_DEEPEST = 64  # brackets within brackets; gradio and pydantic go down into them by recursion


class Streams:
    """The open streams, by session or event. For the server's thread to write, for any to read."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()
        self._ended: dict[str, float] = {}  # when the last stream of a name ended; forgotten after the grace
        self._lock = threading.Lock()

    def has(self, names: set[str]) -> bool:
        """Whether a stream under one of ``names`` is open or was until just now."""
        now = time.monotonic()
        with self._lock:
            return any(self._open[name] or now - self._ended.get(name, -1e9) < GRACE_SECONDS for name in names)

    @contextmanager
    def reading(self, name: str) -> Iterator[_Reader]:
        """A stream is open for the context, and counts while its reader takes what is sent."""
        reader = _Reader(self, name)
        reader.count(1)
        try:
            yield reader
        finally:
            reader.leave()

    def _add(self, name: str, count: int) -> None:
        now = time.monotonic()
        with self._lock:
            self._open[name] += count
            if self._open[name] <= 0:
                del self._open[name]
                self._ended = {old: at for old, at in self._ended.items() if now - at < GRACE_SECONDS}
                self._ended[name] = now


class _Reader:
    """One stream's reader."""

    def __init__(self, streams: Streams, name: str) -> None:
        self._streams, self._name, self._counted = streams, name, 0

    def count(self, wanted: int) -> None:
        if wanted != self._counted:
            self._streams._add(self._name, wanted - self._counted)
            self._counted = wanted

    def leave(self) -> None:
        self.count(0)

    async def take(self, sending: Awaitable[None]) -> None:
        """Waits for a frame to be taken; a reader that is stuck does not count meanwhile."""
        stuck = asyncio.get_running_loop().call_later(_STUCK_SECONDS, self.leave)
        try:
            await sending
        finally:
            stuck.cancel()
        self.count(1)


class Listener:
    """Whoever sent one POST. A direct one ends with it; ``names`` are the streams that a queued one is followed by."""

    def __init__(self, streams: Streams | None) -> None:
        self._streams = streams
        self._until = time.monotonic() + GRACE_SECONDS
        self.names: set[str] = set()
        self.gone = False

    def __call__(self) -> bool:
        """Whether somebody listens."""
        if self._streams is None:
            return not self.gone
        return time.monotonic() < self._until or self._streams.has(self.names)

    def answered(self) -> None:
        """The POST of a queued call has been answered: its stream is due."""
        self._until = time.monotonic() + GRACE_SECONDS


def listener_of(request: gr.Request | None) -> Callable[[], bool]:
    """Whether the caller of a handler still listens; one of whom nothing is known always does."""
    scope = getattr(getattr(request, "request", None), "scope", None) or {}
    return scope.get(_KEY, _always)


def _always() -> bool:
    return True


class Presence:
    """ASGI middleware: keeps track of listeners, limits bodies before they are parsed, and closes the upload route."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self.streams = Streams()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        if _CLOSED.search(path):
            return await _refuse(send, 404, "This page takes no files.")
        if scope["method"] == "GET":
            return await self._get(scope, receive, send, path)
        body = await _read(scope, receive)
        if body is None:
            return await _refuse(send, 413, f"This page takes requests of at most {BODY_BYTES // 1024} KB.")
        if _is_deep(body):
            return await _refuse(send, 400, "The request is nested too deeply.")
        if _EMPTY_SESSION.search(body):
            return await _refuse(send, 400, "session_hash is empty: name a session, or leave it out.")
        body = _without_halves(body)
        if _DIRECT.search(path):
            return await self._direct(scope, receive, send, body)
        if _QUEUED.search(path):
            return await self._queued(scope, receive, send, body)
        return await self.app(scope, _replay(body, receive), send)

    async def _get(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, path: str) -> None:
        if _SESSION_STREAM.search(path):
            name = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])[0]
        else:
            name = match[1] if (match := _EVENT_STREAM.search(path)) else ""
        if not name:
            return await self.app(scope, receive, send)
        with self.streams.reading(name) as reader:
            await self.app(scope, receive, lambda message: reader.take(send(message)))

    async def _direct(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, body: bytes) -> None:
        listener = scope[_KEY] = Listener(None)
        watch = asyncio.create_task(_until_gone(receive, listener))
        try:
            await self.app(scope, _replay(body, receive), send)
        finally:
            listener.gone = True
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _queued(self, scope: MutableMapping[str, Any], receive: Receive, send: Send, body: bytes) -> None:
        listener = scope[_KEY] = Listener(self.streams)
        listener.names |= _named(body, "session_hash")

        async def tell(message: Message) -> None:
            listener.names |= _named(message.get("body", b""), "event_id")
            listener.answered()
            await send(message)

        await self.app(scope, _replay(body, receive), tell)


async def _until_gone(receive: Receive, listener: Listener) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    listener.gone = True


async def _read(scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
    """The request's body; None where it is larger than ``BODY_BYTES``, of which no more is kept."""
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    if lengths and (not lengths[0].isdigit() or len(lengths[0]) > 9 or int(lengths[0]) > BODY_BYTES):
        return None
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > BODY_BYTES:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _without_halves(body: bytes) -> bytes:
    """JSON whose lone halves of surrogate pairs, which no answer could hold, are replacement characters, as long."""
    return _ESCAPES.sub(lambda escape: rb"\ufffd" if escape["half"] else escape[0], body)


def _is_deep(body: bytes) -> bool:
    depth = 0
    for match in _BRACKETS.finditer(body):
        depth += {b"[": 1, b"{": 1, b"]": -1, b"}": -1}.get(match[0], 0)
        if depth > _DEEPEST:
            return True
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """``receive`` for whoever has the body still to read."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return left.pop() if left else await receive()

    return replayed


def _named(content: bytes, field: str) -> set[str]:
    """The text of ``field`` in a JSON object."""
    try:
        value = json.loads(content).get(field)
    except (ValueError, AttributeError, RecursionError):
        return set()
    return {value} if isinstance(value, str) and value else set()


async def _refuse(send: Send, status: int, why: str) -> None:
    content = json.dumps({"detail": why}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": content})
