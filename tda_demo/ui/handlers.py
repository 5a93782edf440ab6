"""What happens when someone presses something: worker events in, component values out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from functools import partial
from typing import Any

import gradio as gr

from ..errors import UserError
from . import wording
from .frame import Frame, Outputs, buttons, notice, ready
from .limits import LIMITS, Limits, RunRequest, checked
from .loader import Loading, Models
from .offers import EMBEDDED, Offers
from .runs import race_job
from .view import RaceView, Waiting
from .worker import Ticket, Worker

_FRAME_SECONDS = 0.15
_WAITING_SECONDS = 1.0  # a frame of those who wait: each one takes a little time from the race
_STATE_SECONDS = 0.25


class Service:
    """The page's one worker and its models, and what visitors may ask of them."""

    def __init__(self, offers: Offers, limits: Limits = LIMITS) -> None:
        self.offers = offers
        self.limits = limits
        self.models = Models(limits.loaded_models)
        self.worker = Worker(limits.waiting_runs)

    def preload(self) -> None:
        """Starts loading the default model beside the page."""
        self.worker.submit("", self._preload)

    def _preload(self, _: Ticket) -> Generator[Any]:
        self.models.preload()
        yield from ()

    def submit(self, owner: str, wishes: dict[str, Any]) -> tuple[RunRequest, Ticket]:
        """A place in the line for a race.

        Raises:
            UserError: something in ``wishes`` is out of the page's limits, or the line is full.
        """
        request = checked(self.offers, **wishes, limits=self.limits)
        return request, self.worker.submit(owner, partial(race_job, self.models, request, self.limits))

    def race(self, owner: str, wishes: dict[str, Any]) -> Iterator[Outputs]:
        """A race for the page: what changed, by component name, about six times a second. Closing it ends the run."""
        try:
            request, ticket = self.submit(owner, wishes)
        except UserError as error:
            yield {"notice": notice(RaceView(phase="failed", message=str(error)))}
            return
        view = RaceView(request.max_new_tokens)
        frame = Frame(view, request)
        yield buttons(running=True)
        try:
            while not view.over:
                for event in self._events(ticket, view):
                    view.apply(event)
                yield frame.outputs()
        finally:
            self.worker.withdraw(ticket)
        yield buttons(running=False)

    def _events(self, ticket: Ticket, view: RaceView) -> list[Any]:
        """What happened in one frame. For a run that waits: its place, or how far the model is it waits for."""
        place, loading = self.worker.place(ticket), self.models.state.progress
        if place == 0:
            news = [Waiting(0)] if view.phase in ("empty", "queued") else []
            return news + ticket.drain(_FRAME_SECONDS)
        if view.phase != "empty":  # the first news is told at once
            place = self.worker.await_turn(ticket, _STATE_SECONDS if loading else _WAITING_SECONDS)
        return [Loading(loading) if place == 1 and loading else Waiting(place)]

    def result(self, owner: str, wishes: dict[str, Any]) -> dict[str, Any]:
        """A race for the API: its JSON.

        Raises:
            UserError: whatever went wrong, in one sentence.
        """
        request, ticket = self.submit(owner, wishes)
        view = RaceView(request.max_new_tokens)
        try:
            while not view.over:
                for event in ticket.drain(1.0):
                    view.apply(event)
        finally:
            self.worker.withdraw(ticket)
        if view.result is None:
            raise UserError(view.message)
        return view.result.to_json()

    def stop(self, request: gr.Request) -> None:
        """The visitor pressed Stop."""
        self.worker.stop(owner(request))

    def leave(self, request: gr.Request) -> None:
        """The visitor closed the tab."""
        self.worker.abandon(owner(request))

    async def model_states(self) -> AsyncIterator[Outputs]:
        """How far the default model is, until it is ready or has failed."""
        while not (state := self.models.state).settled:
            progress = state.progress
            share = progress.done / progress.total if progress and progress.total else None
            text = wording.loading(progress) if progress else ""
            yield {"model_notice": {"text": text, "tone": "quiet", "progress": share}}
            await asyncio.sleep(_STATE_SECONDS)
        if state.failure:
            yield {"model_notice": {"text": state.failure, "tone": "error", "progress": None}}
        else:
            yield {
                "model_notice": ready(EMBEDDED, state.environment["precision"]),
                "machine": wording.machine(state.environment),
                "scale": [1.0] * state.layers,
            }


def owner(request: gr.Request) -> str:
    """Who may stop a run: the session, which gradio gives every open page and every API client."""
    return request.session_hash or ""
