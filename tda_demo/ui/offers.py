"""Which models and precisions a visitor may choose. A public page loads nothing that it does not name here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..model.precision import Device, default_precision, precisions_on
from ..support.errors import UserError
from .catalogue import CATALOGUE, EMBEDDED, label
from .memory import has_nvidia_driver, is_zero_gpu_space

HUB_MODELS = tuple(entry.name for entry in CATALOGUE if entry.name != EMBEDDED)
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Offers:
    """``any_model``: the owner lets visitors name any hub id or local path. Never true on a Space.

    ``device`` is where models are expected to run; the loader, which has torch, knows.
    """

    any_model: bool = False
    device: Device = "cpu"
    models: tuple[str, ...] = (EMBEDDED, *HUB_MODELS)

    @classmethod
    def here(cls, allow_any_model: bool) -> Offers:
        """The offers of this process: on a Space (``SPACE_ID`` is set) only the list, whatever was asked."""
        device: Device = "cuda" if has_nvidia_driver() or is_zero_gpu_space() else "cpu"
        return cls(any_model=allow_any_model and "SPACE_ID" not in os.environ, device=device)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the page lists, after the automatic choice from the fewest bytes to the most."""
        return (AUTOMATIC, *reversed(precisions_on(self.device)))

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What the page lists: a model with its estimate of memory, and its name."""
        return [(label(name, self.device), name) for name in self.models]

    @property
    def hint(self) -> str:
        """One line under the list: where models run, and what the sizes are."""
        if self.device == "cuda":
            return f"Sizes are upper estimates of GPU memory in {default_precision(self.device)}."
        sizes = f"Sizes are upper estimates of memory in {default_precision(self.device)}."
        return f"No CUDA GPU here: models run on the CPU. {sizes}"

    def model(self, name: Any) -> str | None:
        """What ``load_model`` takes for ``name``: None for the embedded model.

        Raises:
            UserError: the name is not on the list.
        """
        if name in (None, "", EMBEDDED):
            return None
        if not isinstance(name, str) or not (self.any_model or name in self.models):
            raise UserError(f"This page does not offer that model: choose one of {', '.join(self.models)}.")
        return name

    def precision(self, name: Any) -> str | None:
        """What ``load_model`` takes for ``name``: None for the automatic choice.

        Raises:
            UserError: the precision is not on the list.
        """
        if name in (None, "", AUTOMATIC):
            return None
        if name not in self.precisions:
            raise UserError(f"This page does not offer that precision: choose one of {', '.join(self.precisions)}.")
        return name
