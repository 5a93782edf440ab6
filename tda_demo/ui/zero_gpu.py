"""ZeroGPU: a Space that has a GPU only inside a call of a function decorated with ``spaces.GPU``.

Such a call runs in another process, forked for it and kept for a while, and what goes in and comes out is pickled. So a
job travels as plain arguments and its events come back in frames; the model is loaded and warmed up inside the call,
where the GPU is, and stays there for the next call. Weights are fetched before it: waiting for a download would use up
the visitor's seconds. Stop is a file that both processes see.
"""

from __future__ import annotations

import io
import math
import pickle
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import gradio as gr

from ..support.errors import UserError
from ..support.interruption import GivenUp
from ..support.lazy import torch
from ..support.progress import Report
from .models import Models, ModelState, check_access, is_zero_gpu_space
from .requests import LIMITS
from .worker import Closed, Ticket, carry_out, reporter

_FRAME_SECONDS = 0.15
_CONCLUDING_SECONDS = 15.0  # before the GPU is taken back, which would lose everything: time to judge what there is
LOADING_SECONDS = 45.0  # an allowance for a model of 8 billion weights, its kernels and graphs


class Job(Protocol):
    """What a tab submits. Picklable: a function of a module, or a partial of one with plain arguments."""

    def __call__(self, models: Models, *, ticket: Ticket) -> Generator[Any]: ...


@dataclass(frozen=True)
class GpuNeed:
    """What a job uses the GPU for: the ``model``, None for the embedded one, and for how many ``seconds`` at most."""

    model: str | None
    seconds: float


Call = Callable[[Job, float, str], Generator[bytes]]


def lent_gpu() -> Call | None:
    """What runs a job on the GPU that is lent; None on any other machine. For the main thread, before torch is used.

    ``spaces`` comes with such a Space. It must have seen a decorated function before the page is launched.
    """
    if not is_zero_gpu_space():
        return None
    return import_module("spaces").GPU(duration=_duration)(_run_on_gpu)


class FetchedModels(Models):
    """The models of the process that has no GPU: the default one's weights are fetched, not loaded."""

    def _default(self, report: Report) -> None:
        from transformers import AutoConfig

        from ..model.precision import choose_precision
        from ..support.environment import describe

        config = AutoConfig.from_pretrained(_fetch(None, report), local_files_only=True)
        gpu = torch.device("cuda")
        self.state = ModelState(layers=config.num_hidden_layers, environment=describe(gpu, choose_precision(None, gpu)))


def on_lent_gpu(call: Call, job: Job, need: GpuNeed, ticket: Ticket) -> Generator[Any]:
    """The events of ``job``, which runs in a call of its own.

    Raises:
        UserError: the weights cannot be had; or the GPU cannot, for example because the visitor's quota is used up.
    """
    with suppress(GivenUp):
        _fetch(need.model, reporter(ticket))
        yield from _frames(call, job, need.seconds, ticket)


def _fetch(name: str | None, report: Report) -> Path:
    from ..model.weights import find_weights

    check_access(name)
    return find_weights(name, report).folder


def _frames(call: Call, job: Job, seconds: float, ticket: Ticket) -> Generator[Any]:
    with TemporaryDirectory() as folder:
        stop = Path(folder) / "stop"
        try:
            with closing(call(job, seconds, str(stop))) as frames:
                for frame in frames:
                    yield from (event for event in pickle.loads(frame) if not isinstance(event, Closed))
                    if ticket.stop.is_set():
                        stop.touch()
        except gr.Error as error:  # all that ``spaces`` raises, in words meant for visitors
            raise UserError(f"The GPU was not to be had or was taken back: {error.message!s}") from error


def _duration(job: Job, seconds: float, stop: str) -> int:
    return math.ceil(seconds)


def _run_on_gpu(job: Job, seconds: float, stop: str) -> Generator[bytes]:
    """Runs in the process that has the GPU. A frame comes even when nothing happened: there the caller is heard."""
    late = time.monotonic() + seconds - _CONCLUDING_SECONDS
    ticket = Ticket("", lambda ticket: job(_models(), ticket=ticket))
    thread = threading.Thread(target=carry_out, args=[ticket], name="model", daemon=True)
    thread.start()
    try:
        while not ticket.closed.is_set():
            yield _pickle_events(ticket.drain(_FRAME_SECONDS))
            if time.monotonic() > late or Path(stop).exists():
                ticket.stop.set()
        yield _pickle_events(ticket.drain(0))
    finally:  # the visitor has left, or it is over
        ticket.withdrawn.set()
        ticket.stop.set()
        thread.join()


@cache
def _models() -> Models:
    return Models(LIMITS.loaded_models)


class _Packer(pickle.Pickler):
    """Tensors travel as arrays: one of a GPU, or in shared memory, is nothing to another process."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.Tensor):
            return torch.from_numpy, (obj.cpu().numpy(),)
        return NotImplemented


def _pickle_events(events: list[Any]) -> bytes:
    frame = io.BytesIO()
    _Packer(frame, pickle.HIGHEST_PROTOCOL).dump(events)
    return frame.getvalue()
