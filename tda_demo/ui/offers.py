"""Which models and precisions a visitor may choose. A public page loads nothing that it does not name here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from ..errors import UserError

EMBEDDED = "SmolLM2-135M-Instruct"
HUB_MODELS = (
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "Qwen/Qwen3-0.6B",
)
AUTOMATIC = "automatic"
PRECISIONS = (AUTOMATIC, "nf4", "int8", "bfloat16", "float32")


@dataclass(frozen=True)
class Offers:
    """``any_model``: the owner lets visitors name any hub id or local path. Never true on a Space."""

    any_model: bool = False
    models: tuple[str, ...] = (EMBEDDED, *HUB_MODELS)
    precisions: tuple[str, ...] = PRECISIONS

    @classmethod
    def here(cls, allow_any_model: bool) -> Offers:
        """The offers of this process: on a Space (``SPACE_ID`` is set) only the list, whatever was asked."""
        return cls(any_model=allow_any_model and "SPACE_ID" not in os.environ)

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
