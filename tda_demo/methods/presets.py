"""Presets: settings that a rule found, shipped with the figures that chose them (``evaluate.presets`` finds them).

``exact`` leaves nothing out. ``default`` is the fastest setting whose KL on answers to held-out questions is at most
``MOST_KL``; ``aggressive`` has at least twice its KL and is faster. ``paper`` is the method as its paper has it, where
there is one, whatever it costs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from ..support.errors import UserError
from ..support.files import DATA
from .base import Method

MOST_KL = 0.15  # nats per token
FILE = DATA / "presets.json"


@dataclass(frozen=True)
class Preset:
    """``kl`` in nats per token and ``agreement`` over the held-out answers.

    ``mlp_share`` of the dense model's MLP bytes is what a step reads; ``byte_bound`` is of the whole step; ``speedup``
    is None where it was not measured.
    """

    name: str
    settings: dict[str, Any]
    kl: float
    agreement: float
    mlp_share: float
    byte_bound: float
    speedup: float | None = None

    def of(self, kind: type[Method]) -> Method:
        """The method ``kind`` at this preset."""
        return kind(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in self.settings.items()}
        )


@dataclass(frozen=True)
class PresetTable:
    """Presets by method, and what the figures were measured on."""

    model: str
    precision: str
    machine: str
    texts: int
    scored_tokens: int
    methods: dict[str, list[Preset]]

    def text(self) -> str:
        """What the file holds."""
        return json.dumps(asdict(self), indent=1) + "\n"


@cache
def shipped() -> PresetTable:
    """Those of the embedded model, which serve other models too; empty where there is no file."""
    if not FILE.is_file():
        return PresetTable("", "", "", 0, 0, {})
    fields = json.loads(FILE.read_text(encoding="utf-8"))
    methods = {name: [Preset(**preset) for preset in presets] for name, presets in fields.pop("methods").items()}
    return PresetTable(**fields, methods=methods)


def presets_of(kind: type[Method]) -> list[Preset]:
    """Of one method, exact first; empty for one that no rule has looked at."""
    return shipped().methods.get(kind.name, [])


def preset_named(kind: type[Method], name: str) -> Preset:
    """The preset of ``kind`` called ``name``.

    Raises:
        UserError: there is none.
    """
    known = {preset.name: preset for preset in presets_of(kind)}
    if name not in known:
        offered = f"it has: {', '.join(known)}" if known else "it has none"
        raise UserError(f"{kind.name} has no preset '{name}'; {offered}.")
    return known[name]
