"""How a prepared step is run again and again: called each time, or captured in a CUDA graph once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Step = Callable[[], None]


@dataclass(frozen=True)
class Runner:
    """``run()`` does the step that was prepared, on the memory it was prepared on."""

    name: str
    run: Step


def eager(step: Step) -> Runner:
    """Calls the step each time."""
    return Runner("called eagerly", step)


def captured(step: Step) -> Runner:
    """The step as a CUDA graph; eager where it cannot be captured, which the name then says.

    It runs a few times on the way here, so what it changes (the position) must be set afterwards.
    """
    try:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles kernels and lets libraries make their handles, which no graph can hold
                step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the card meanwhile
            step()
    except RuntimeError:  # a family whose forward pass waits for the device
        torch.cuda.synchronize()
        return Runner("called eagerly: the step could not be captured", step)
    return Runner("CUDA graph", graph.replay)
