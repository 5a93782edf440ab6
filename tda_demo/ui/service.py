"""The page's one worker and its models, which every tab uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from ..support.memory import map_large_blocks, trim_memory
from . import wording
from .models import EMBEDDED, Models
from .presence import listener_of
from .requests import LIMITS, Limits, Offers
from .visits import Visits, owner
from .widgets import Outputs, ready, sentence
from .worker import Loading, Ticket, Waiting, Worker
from .zero_gpu import FetchedModels, GpuNeed, Job, lent_gpu, on_lent_gpu

# For every frame the race pauses (``worker``), so that it draws nothing out of a step: often enough to be seen to move.
_FRAME_SECONDS = 0.25
_WAITING_SECONDS = 1.0  # a frame of those who wait: each one takes a little time from the race
_STATE_SECONDS = 0.25


class Service:
    """Runs the tabs' jobs one at a time and tells how far each one is."""

    def __init__(self, offers: Offers, limits: Limits = LIMITS) -> None:
        map_large_blocks()  # before a model is loaded
        self.offers = offers
        self.limits = limits
        self._lent = lent_gpu()
        self.models = FetchedModels(limits.loaded_models) if self._lent else Models(limits.loaded_models)
        self.worker = Worker(limits.waiting_runs, after=trim_memory, quiet=self.models.calibrate)
        self.visits = Visits()

    def preload(self) -> None:
        """Starts loading the default model beside the page."""
        self.worker.submit("", self._preload)

    def _preload(self, _: Ticket) -> Generator[Any]:
        self.models.preload()
        yield from ()

    def submit(self, owner: str, job: Job, need: GpuNeed | None) -> Ticket:
        """A place in the line for ``job``. On a Space with ZeroGPU it runs where the GPU is if it has ``need`` of one.

        Raises:
            UserError: the line is full.
        """
        lent, models = self._lent, self.models
        listens = listener_of(LocalContext.request.get(None))
        if lent is None or need is None:
            return self.worker.submit(owner, lambda ticket: job(models, ticket=ticket), listens)
        return self.worker.submit(owner, lambda ticket: on_lent_gpu(lent, job, need, ticket), listens)

    def news(self, ticket: Ticket, *, begun: bool, first: bool) -> list[Any]:
        """What happened to a job in one frame. For one that waits: its place, or how far the model is it waits for.

        ``begun`` once it has had an event of its own; the ``first`` news is not waited for.
        """
        place, loading = self.worker.place(ticket), self.models.state.progress
        with ticket.followed():
            if place == 0:
                return ([] if begun else [Waiting(0)]) + ticket.drain(_FRAME_SECONDS)
            if not first:
                place = self.worker.await_turn(ticket, _STATE_SECONDS if loading else _WAITING_SECONDS)
        return [Loading(loading) if place == 1 and loading else Waiting(place)]

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody looks at the job any more."""
        self.worker.withdraw(ticket)

    def stop(self, request: gr.Request) -> None:
        """The visitor pressed Stop."""
        self.worker.stop(owner(request))

    def leave(self, request: gr.Request) -> None:
        """The visitor closed the tab."""
        self.worker.abandon(owner(request))
        self.visits.forget(owner(request))

    async def model_states(self) -> AsyncIterator[Outputs]:
        """How far the default model is, until it is ready or has failed."""
        while not (state := self.models.state).settled:
            progress = state.progress
            notice = (
                sentence(wording.progress_text(progress), progress=wording.share(progress))
                if progress
                else sentence("")
            )
            yield {"model_notice": notice}
            await asyncio.sleep(_STATE_SECONDS)
        if state.failure:
            yield {"model_notice": sentence(state.failure, "error")}
        else:
            yield {
                "model_notice": ready(EMBEDDED, state.environment["precision"]),
                "machine": wording.machine(state.environment),
                "scale": [1.0] * state.layers,
            }
