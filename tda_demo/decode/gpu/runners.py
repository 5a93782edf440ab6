"""How a prepared step is run again and again: called each time, or captured in a CUDA graph once and replayed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ...kernels.gpu.capture import capture

Step = Callable[[], object]


@dataclass(frozen=True)
class Runner:
    """``run()`` does the step that was prepared, on the memory it was prepared on.

    ``step`` is that step: a graph holds the addresses of its tensors only, which are freed with it.
    """

    name: str
    run: Step
    step: Step


def eager(step: Step) -> Runner:
    """Calls the step each time."""
    return Runner("called eagerly", step, step)


def captured(step: Step) -> Runner:
    """The step as a CUDA graph; eager where it cannot be captured, which the name then says.

    It runs a few times on the way here, so what it changes (the position) must be set afterwards.
    """
    try:
        graph = capture(step, runs=3)
    except RuntimeError:  # a family whose forward pass waits for the device
        torch.cuda.synchronize()
        return Runner("called eagerly: the step could not be captured", step, step)
    return Runner("CUDA graph", graph.replay, step)
