"""Work on a CUDA device captured as a graph, and what a capture must not share with its surroundings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch

_REPEATS = 20


def current_device(device: torch.device) -> AbstractContextManager[Any]:
    """``device`` as the current one: Triton's launches, streams and captures go there."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def capture(call: Callable[[], object], runs: int) -> torch.cuda.CUDAGraph:
    """``call`` on the current CUDA device, as a graph to be replayed; it runs ``runs`` times before.

    The graph holds addresses, not tensors: whatever ``call`` reads and writes must be kept for as long as it is.

    Raises:
        RuntimeError: the work cannot be captured, as it waits for the device.
    """
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
        # other threads may use the card meanwhile.
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
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in pairwise(events))
    return times[len(times) // 2]
