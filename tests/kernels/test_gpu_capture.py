"""What a capture does around the work it captures, on a fake of torch.cuda; a card shows it in test_gpu_card."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from gpu_device import CUDA

from tda_demo.bench.mlp_only import Captured
from tda_demo.kernels.gpu.device import Runner, Step, capture, eager_runner, graph_runner

pytestmark = pytest.mark.skipif(CUDA, reason="a card needs no fake")


class FakeStream:
    def wait_stream(self, _: FakeStream) -> None:
        pass

    def synchronize(self) -> None:
        pass


class FakeGraph:
    def replay(self) -> None:
        pass


@dataclass
class Card:
    """``log`` of what happened; ``current`` stream."""

    current: FakeStream = field(default_factory=FakeStream)
    log: list[str] = field(default_factory=list)
    capturing: FakeStream | None = None

    @contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, _graph: FakeGraph, stream: FakeStream, capture_error_mode: str) -> Iterator[None]:
        """As torch's: where the end of a capture fails, its stream stays the current one."""
        assert capture_error_mode == "thread_local"
        before, self.current = self.current, stream
        self.log.append("begin")
        self.capturing = stream
        try:
            yield
        except ValueError as error:
            raise RuntimeError("the capture is invalid") from error
        self.capturing = None
        self.log.append("end")
        self.current = before


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    made = Card()
    fakes: dict[str, Any] = {
        "Stream": FakeStream,
        "current_stream": lambda: made.current,
        "stream": made.stream,
        "CUDAGraph": FakeGraph,
        "graph": made.graph,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: made.log.append("clear"), raising=False)
    return made


def test_a_graph_has_a_stream_and_a_workspace_of_its_own(card: Card) -> None:
    caller = card.current
    ran: list[FakeStream] = []
    capture(lambda: ran.append(card.current), runs=2)
    assert len(ran) == 3 and set(ran) == {ran[0]} and ran[0] is not caller
    assert card.log == ["clear", "begin", "end", "clear"]
    assert card.current is caller


def test_a_failed_capture_leaves_the_callers_stream_current(card: Card) -> None:
    caller = card.current

    def waits_for_the_device() -> None:
        if card.capturing:
            raise ValueError

    runner = graph_runner(waits_for_the_device)
    assert runner.name == "called eagerly: the step could not be captured" and runner.run is waits_for_the_device
    assert card.current is caller
    assert card.log == ["clear", "begin", "clear"]


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("make", [graph_runner, eager_runner])
def test_a_runner_keeps_what_its_step_works_on(make: Callable[[Step], Runner]) -> None:
    buffer = torch.zeros(4)
    kept = weakref.ref(buffer)
    runner = make(lambda buffer=buffer: buffer.add_(1))
    del buffer
    gc.collect()
    assert kept() is not None
    del runner
    assert kept() is None


@pytest.mark.usefixtures("card")
def test_blocks_timed_alone_keep_their_buffers() -> None:
    buffer = torch.zeros(4)
    kept = weakref.ref(buffer)
    contestant = Captured(lambda buffer=buffer: buffer.add_(1), torch.device("cuda"))
    del buffer
    gc.collect()
    assert kept() is not None and contestant.runner.name == "CUDA graph"
