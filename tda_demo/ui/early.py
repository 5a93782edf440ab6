"""What stands on the page before gradio has built it: the recorded race, already moving.

Gradio loads some eighty files before the first of the page's components is there. Its first answer holds all of their
values, though, so a script beside it can draw the stage from them at once (``assets/early.js``); the real one takes
over where it stands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from ..support.files import ASSETS

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

SCRIPTS = tuple(ASSETS / f"{name}.js" for name in ("slots", "history", "rows", "heat", "stage", "early"))
_END = b"</body>"


class EarlyStage:
    """ASGI middleware: adds the scripts to the page's HTML, at the end of its body."""

    def __init__(self, app: Application) -> None:
        self.app = app
        tags = "".join(f'<script src="gradio_api/file={script}"></script>' for script in SCRIPTS)
        self._added = tags.encode("utf-8")

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return await self.app(scope, receive, send)
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            parts.append(message.get("body", b""))
            if message.get("more_body"):
                return
            body = self._extended(b"".join(parts), start["headers"])
            others = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
            await send({**start, "headers": [*others, (b"content-length", str(len(body)).encode())]})
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, collect)

    def _extended(self, body: bytes, headers: list[tuple[bytes, bytes]]) -> bytes:
        named = {name.lower(): value for name, value in headers}
        if not named.get(b"content-type", b"").startswith(b"text/html") or b"content-encoding" in named:
            return body
        before, end, after = body.rpartition(_END)
        return before + self._added + end + after if end else body
