"""A CUDA device: whether the kernels can run on it, and work on it captured as a graph, to be replayed or timed."""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from .attention import rms_norm

logger = logging.getLogger(__name__)

Step = Callable[[], object]

_REPEATS = 20
_capturing = threading.Lock()


def has_triton() -> bool:
    """Whether Triton is installed (it comes with the CUDA builds of torch)."""
    return importlib.util.find_spec("triton") is not None


@cache
def triton_runs(device: torch.device) -> bool:
    """Whether a program of ours runs on ``device``; the log has the reason where it does not. Tried once.

    Triton may be there and still not work: it builds its launcher with a C compiler and Python's headers, and knows no
    cards of old kinds.
    """
    if not has_triton():
        return False
    try:
        with current_device(device):
            x = torch.ones(1, 16, device=device)
            finish(device)  # a launch may read weights before the one before it has ended
            return torch.equal(rms_norm(x, x[0], 0.0), x)
    except Exception as error:  # each of Triton's steps fails with exceptions of its own
        logger.warning("Triton is installed and cannot run a program on %s: %s", device, error)
        return False


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the current one: Triton's launches, streams and captures go there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def finish(device: torch.device) -> None:
    """Returns once ``device`` has done what the current stream was given; other threads' work goes on."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def capture(call: Callable[[], object], runs: int) -> torch.cuda.CUDAGraph:
    """``call`` on the current CUDA device, as a graph to be replayed; it runs ``runs`` times before.

    One capture at a time: each begins by waiting for the whole device, which no other capture survives.

    The graph holds addresses, not tensors: whatever ``call`` reads and writes must be kept for as long as it is.

    Raises:
        RuntimeError: the work cannot be captured, as it waits for the device.
    """
    with _capturing:
        return _captured(call, runs)


def _captured(call: Callable[[], object], runs: int) -> torch.cuda.CUDAGraph:
    caller, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(caller)
    with torch.cuda.stream(side):
        for _ in range(runs):  # compiles kernels and lets libraries make their handles, which no graph can hold
            call()
    caller.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # cuBLAS keeps a workspace for each stream, whose address a graph holds too, and gives it up when any graph of that
    # stream goes. Without one before and after, the graph makes its own, in its own memory.
    torch._C._cuda_clearCublasWorkspaces()
    try:
        # The caller's stream, named again: a capture that fails leaves its own as the current one. "thread_local":
        # other threads may use the card meanwhile, but not wait for all of it, which ``finish`` does not.
        with (
            torch.cuda.stream(caller),
            torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"),
        ):
            call()
    finally:
        torch._C._cuda_clearCublasWorkspaces()
    return graph


def graph_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of ``call`` on the current CUDA device, captured once and replayed.

    Raises:
        RuntimeError: see ``capture``.
    """
    graph = capture(call, runs=2)
    graph.replay()
    events = [torch.cuda.Event(enable_timing=True) for _ in range(_REPEATS + 1)]
    events[0].record()
    for event in events[1:]:
        graph.replay()
        event.record()
    torch.cuda.current_stream().synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in pairwise(events))
    return times[len(times) // 2]


@dataclass(frozen=True)
class Runner:
    """``run()`` does the step that was prepared, on the memory it was prepared on.

    ``step`` is that step: a graph holds the addresses of its tensors only, which are freed with it.
    """

    name: str
    run: Step
    step: Step


def eager_runner(step: Step) -> Runner:
    """Calls the step each time."""
    return Runner("called eagerly", step, step)


def graph_runner(step: Step) -> Runner:
    """The step as a CUDA graph; eager where it cannot be captured, which the name then says.

    It runs a few times on the way here, so what it changes (the position) must be set afterwards.
    """
    try:
        graph = capture(step, runs=3)
    except RuntimeError:  # a family whose forward pass waits for the device
        torch.cuda.current_stream().synchronize()
        return Runner("called eagerly: the step could not be captured", step, step)
    return Runner("CUDA graph", graph.replay, step)
