"""The models in memory, and how far the one being loaded is. The heavy imports happen here, beside the page."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..support.errors import UserError
from ..support.progress import Progress, Report, silent
from .catalogue import check_access, check_room
from .memory import gpu_memory, main_memory
from .worker import Ticket

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loading:
    """An event: ``progress`` of getting the model ready."""

    progress: Progress


class GivenUp(Exception):
    """Breaks off a download or a calibration that its visitor has stopped waiting for."""


def reporter(ticket: Ticket) -> Report:
    """Tells the job's visitor of every progress as ``Loading``; raises GivenUp once the job is to stop."""

    def report(progress: Progress) -> None:
        if ticket.stop.is_set():
            raise GivenUp
        ticket.events.put(Loading(progress))

    return report


@dataclass(frozen=True)
class ModelState:
    """What the page says of the model it starts with: it is being loaded, it is ready, or it failed."""

    progress: Progress | None = None
    layers: int = 0
    environment: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def settled(self) -> bool:
        return bool(self.layers or self.failure)


class Models:
    """Loads models and keeps the ``most`` recently used. Everything but ``state`` is for the worker's thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.state = ModelState(Progress("Starting", 0, 0, ""))
        self._loaded: OrderedDict[tuple[str | None, str], LoadedModel] = OrderedDict()
        self._automatic: dict[str | None, str] = {}  # which precision None came to

    def preload(self) -> None:
        """Loads the default model, so that the first visitor does not wait for it."""
        try:
            self._default(self._show)
        except UserError as error:
            self.state = ModelState(failure=str(error))
        except Exception:
            logger.exception("The default model was not loaded.")
            self.state = ModelState(failure="The model could not be loaded; the server's log has the details.")

    def _default(self, report: Report) -> None:
        self.get(None, None, report)

    def get(self, name: str | None, precision: str | None, report: Report = silent) -> LoadedModel:
        """The model, from memory or freshly loaded.

        Raises:
            UserError: see ``load_model``.
        """
        wanted = precision or self._automatic.get(name)
        if wanted is None or (name, wanted) not in self._loaded:
            lm = self._load(name, precision, report)
            wanted = lm.precision
            if precision is None:
                self._automatic[name] = wanted
            self._loaded[name, wanted] = lm
        self._loaded.move_to_end((name, wanted))
        return self._loaded[name, wanted]

    def _load(self, name: str | None, precision: str | None, report: Report) -> LoadedModel:
        from ..decode.choose import engine_for
        from ..model.loading import load_model
        from ..model.precision import give_back_memory
        from ..support.environment import describe

        self._check(name, precision)
        while len(self._loaded) >= self.most:  # before loading, so that both are never in memory
            self._loaded.popitem(last=False)
            give_back_memory()
        lm = load_model(name, precision=precision, report=report)
        engine_for(lm).warm_up(report)  # what is slow once belongs to loading, not to somebody's first race
        if name is None:
            self.state = ModelState(layers=len(lm.blocks), environment=describe(lm.device, lm.precision))
        return lm

    def _check(self, name: str | None, precision: str | None) -> None:
        """Before anything is fetched, and before another model has to go.

        Raises:
            UserError: the model is too large for the memory there is, or gated and no token is set.
        """
        import torch

        check_access(name)
        leaving = list(self._loaded.values())[: max(0, len(self._loaded) - self.most + 1)]
        given_back = sum(parameter.nbytes for lm in leaving for parameter in lm.model.parameters())
        on_gpu = torch.cuda.is_available()
        room = gpu_memory() if on_gpu else main_memory()
        check_room(name, precision, "cuda" if on_gpu else "cpu", room.plus(given_back))

    def _show(self, progress: Progress) -> None:
        self.state = ModelState(progress)
