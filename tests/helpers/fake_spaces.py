"""A stand-in for the ``spaces`` package: its calls run in a process forked for each, and everything is pickled.

Like the real one it reads the visitor's request from gradio's context, and gives no more of an error than its class.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Generator
from functools import wraps
from types import ModuleType
from typing import Any

import gradio as gr
from gradio.context import LocalContext


class FakeSpaces(ModuleType):
    """``calls`` holds the seconds each call asked for and the request it was charged to; ``refuse`` the next ones."""

    def __init__(self) -> None:
        super().__init__("spaces")
        self.calls: list[tuple[int, Any]] = []
        self.refuse = ""

    def GPU(self, *, duration: Callable[..., int]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def decorate(task: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(task)
            def call(*args: Any) -> Generator[Any]:
                self.calls.append((duration(*args), LocalContext.request.get(None)))
                if self.refuse:
                    raise gr.Error(self.refuse)
                yield from _forked(task, pickle.dumps(args))

            return call

        return decorate


def _forked(task: Callable[..., Any], args: bytes) -> Generator[Any]:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()
    left = fork.Event()
    process = fork.Process(target=_answer, args=(theirs, left, task, args), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            kind, value = ours.recv()
            if kind == "error":
                raise gr.Error(value)
            if kind == "end":
                return
            try:
                yield value
            except GeneratorExit:
                left.set()
                raise
    finally:
        process.join(10)


def _answer(pipe: Any, left: Any, task: Callable[..., Any], args: bytes) -> None:
    events = task(*pickle.loads(args))
    try:
        for event in events:
            if left.is_set():
                events.close()
                break
            pipe.send(("yield", event))
    except Exception as error:
        pipe.send(("error", type(error).__name__))
    pipe.send(("end", None))
