"""The most that one request within the caps can take: seconds until it is over, and memory above the idle page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from served import Page

_EVERY_SECONDS = 0.03

REQUESTS: dict[str, dict[str, Any]] = {
    "980 words, 512 tokens": {"prompt": "cat " * 980, "max_new_tokens": 512},
    "the same, exact against sketch": {
        "prompt": "cat " * 980,
        "max_new_tokens": 512,
        "settings": {"cett": 0.0},
        "rival": "sketch",
    },
    "the same, chosen anew every token": {
        "prompt": "cat " * 980,
        "max_new_tokens": 512,
        "settings": {"cett": 0.2, "refresh": 2},
        "rival": "teal",
    },
    "thresholds from the prompt": {
        "prompt": "cat " * 980,
        "settings": {"cett": 0.2, "shape": "uniform", "online": True},
    },
    "2,700 emoji": {"prompt": "\N{GRINNING FACE}\N{SKULL}\N{ROCKET}" * 900},
    "8,000 letters without a space": {"prompt": "ab" * 4000},
    "8,000 different characters": {"prompt": "".join(chr(0x4E00 + place) for place in range(8000))},
}


@dataclass(frozen=True)
class Row:
    """``above`` is the highest resident memory during the request less that before it, in bytes."""

    request: str
    status: int
    seconds: float
    above: int


def run(page: Page) -> Iterator[Row]:
    page.race()
    for name, wishes in REQUESTS.items():
        with _Highest(page) as highest:
            before = page.rss
            seconds, status, _ = page.race(**wishes)
        yield Row(name, status, seconds, highest.bytes - before)


class _Highest:
    """Looks at a page's memory until the context ends."""

    def __init__(self, page: Page) -> None:
        self.bytes = 0
        self._page, self._over = page, threading.Event()

    def __enter__(self) -> _Highest:
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.is_set():
            self.bytes = max(self.bytes, self._page.rss)
            time.sleep(_EVERY_SECONDS)
