"""A page in a process of its own, and a caller that speaks HTTP by hand: it can hang up whenever it likes."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
_READY_SECONDS = 240
_OURS = re.compile(r"/tda_demo/(?!ui/presence\.py)")  # which every request passes through


@dataclass
class Page:
    """A served page: its ``port``, its ``process``, and the file its output goes to."""

    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def rss(self) -> int:
        """Resident bytes of the page's process."""
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def tracebacks(self) -> int:
        """How many tracebacks of ours its output holds: gradio prints its own refusals as tracebacks too."""
        parts = self.log.read_text(errors="replace").split("Traceback (most recent call last)")[1:]
        return sum(bool(_OURS.search(part)) for part in parts)

    def post(self, path: str, body: Any, timeout: float = 200) -> tuple[int, bytes]:
        """Status and answer of a POST of ``body``, JSON unless it is bytes."""
        connection = self.open(path, body, timeout)
        try:
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def open(self, path: str, body: Any, timeout: float = 200) -> http.client.HTTPConnection:
        """A connection on which ``body`` has been posted and nothing read; closing it is hanging up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", f"/gradio_api/{path}", content, {"Content-Type": "application/json"})
        return connection

    def listen(self, path: str, timeout: float = 200) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request("GET", f"/gradio_api/{path}")
        return connection

    def config(self) -> dict[str, Any]:
        """What the page's scripts are told: components and handlers, with what each takes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/config")
        return json.loads(connection.getresponse().read())

    def race(self, prompt: str = "Hello", **wishes: Any) -> tuple[float, int, bytes]:
        """Seconds, status and answer of a race through the direct route."""
        begin = time.monotonic()
        status, answer = self.post("run/race", race_body(prompt, **wishes))
        return time.monotonic() - begin, status, answer


RACE_INPUTS = (
    *("prompt", "cett", "max_new_tokens", "model", "precision", "online", "temperature", "top_p", "seed"),
    *("method", "settings", "rival", "rival_settings"),
)
_DEFAULTS: dict[str, Any] = {
    "cett": None,
    "max_new_tokens": 1,
    "model": "SmolLM2-135M-Instruct",
    "precision": "automatic",
    "online": None,
    "temperature": 0,
    "top_p": 1,
    "seed": 0,
    "method": "tda",
    "settings": None,
    "rival": None,
    "rival_settings": None,
}


def race_body(prompt: Any, session: str | None = None, **wishes: Any) -> dict[str, Any]:
    """A call of the race endpoint as JSON; a session of its own unless ``session`` names one."""
    values = {**_DEFAULTS, "prompt": prompt, **wishes}
    return {"data": [values[name] for name in RACE_INPUTS], "session_hash": session or uuid.uuid4().hex}


@contextmanager
def page(log: Path, environment: Mapping[str, str] | None = None, *arguments: str) -> Iterator[Page]:
    """A page of the embedded model, ready to race; ended with the context."""
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py"), f"--port={port}", *arguments],
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        served = Page(port, process, log)
        _until_ready(served)
        yield served
    finally:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _until_ready(served: Page) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        if served.process.poll() is not None:
            raise RuntimeError(f"the page ended: {served.log.read_text(errors='replace')[-2000:]}")
        with suppress(OSError):
            if served.race()[1] == 200:
                return
        time.sleep(0.5)
    raise TimeoutError("the page is not ready")
