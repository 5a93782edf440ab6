"""The Race tab: two decoders, side by side."""

from __future__ import annotations

from .tab import build

__all__ = ["ID", "TITLE", "build"]

ID, TITLE = "race", "Race"
