"""Callers who hang up, never read, or leave a generator suspended: how long the model is kept from the next one."""

from __future__ import annotations

import json
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from served import Page, race_body

LONG = {"max_new_tokens": 512, "settings": {"cett": 0.0}}  # the longest race there is; exact, so it repeats
PHASES = {
    "prefill": ("word " * 1500, 0.4),
    "decoding": ("Write a very long story about a lighthouse and its keeper.", 2.0),
}


@dataclass(frozen=True)
class Row:
    """``seconds`` from when nobody listened any more until the model was free: how much longer than alone a small race
    took which was asked for then.
    """

    route: str
    phase: str
    seconds: float


def run(page: Page, rounds: int = 2) -> Iterator[Row]:
    alone = statistics.median(page.race()[0] for _ in range(5))
    for route, leave in ROUTES.items():
        for phase, (prompt, wait) in PHASES.items():
            for _ in range(rounds):
                begin = time.monotonic()
                silent = leave(page, prompt, wait)
                begin = begin if silent else time.monotonic()
                page.race()
                yield Row(route, phase, max(0.0, time.monotonic() - begin - alone))


Leave = Callable[[Page, str, float], bool]
"""Asks for a long race and leaves after so many seconds; whether nobody has listened from the beginning."""


def _hang_up(page: Page, prompt: str, wait: float) -> bool:
    """POST to run/race and close the connection."""
    connection = page.open("run/race", race_body(prompt, **LONG))
    time.sleep(wait)
    connection.close()
    return False


def _never_read(page: Page, prompt: str, _wait: float) -> bool:
    """call/race, and nobody ever asks for its stream."""
    page.post("call/race", {"data": race_body(prompt, **LONG)["data"]})
    return True


def _read_and_hang_up(page: Page, prompt: str, wait: float) -> bool:
    """call/race whose stream is opened and closed."""
    _, answer = page.post("call/race", {"data": race_body(prompt, **LONG)["data"]})
    stream = page.listen(f"call/race/{json.loads(answer)['event_id']}")
    time.sleep(wait)
    stream.close()
    return False


def run_handler(page: Page) -> tuple[int, list[Any]]:
    """The handler of the first tab's Run button, and the values its inputs begin with."""
    config = page.config()
    components = {component["id"]: component["props"] for component in config["components"]}
    buttons = {id for id, props in components.items() if props.get("elem_id") == "run"}
    prompt = {id for id, props in components.items() if props.get("elem_id") == "prompt"}
    handler = next(
        dependency
        for dependency in config["dependencies"]
        if any(target[0] in buttons for target in dependency["targets"]) and prompt & set(dependency["inputs"])
    )
    return handler["id"], [components[id].get("value") for id in handler["inputs"]]


def _page_body(page: Page, prompt: str, session: str) -> dict[str, Any]:
    handler, values = run_handler(page)
    config = page.config()
    inputs = next(d["inputs"] for d in config["dependencies"] if d["id"] == handler)
    names = {component["id"]: component["props"].get("elem_id") for component in config["components"]}
    for place, id in enumerate(inputs):
        if names[id] == "prompt":
            values[place] = prompt
        if names[id] == "max-new-tokens":
            values[place] = 512
    return {"data": values, "fn_index": handler, "session_hash": session}


def _suspend(page: Page, prompt: str, _wait: float) -> bool:
    """run/predict of a streaming handler: it answers with the first frame and leaves its generator suspended."""
    page.post("run/predict", _page_body(page, prompt, uuid.uuid4().hex))
    return True


def _leave_queue(page: Page, prompt: str, wait: float) -> bool:
    """What a browser does: queue/join, its stream, and the tab closed."""
    session = uuid.uuid4().hex
    page.post("queue/join", _page_body(page, prompt, session))
    stream = page.listen(f"queue/data?session_hash={session}")
    time.sleep(wait)
    stream.close()
    return False


def _join_only(page: Page, prompt: str, _wait: float) -> bool:
    """queue/join without ever a stream."""
    page.post("queue/join", _page_body(page, prompt, uuid.uuid4().hex))
    return True


ROUTES: dict[str, Leave] = {
    "run/race, hung up": _hang_up,
    "call/race, never read": _never_read,
    "call/race, read and hung up": _read_and_hang_up,
    "run/predict, suspended": _suspend,
    "queue, tab closed": _leave_queue,
    "queue/join, never read": _join_only,
}
