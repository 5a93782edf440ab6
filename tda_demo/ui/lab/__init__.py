"""The Lab tab: the paper's claims, measured on the spot."""

from __future__ import annotations

from .tab import build

__all__ = ["ID", "TITLE", "build"]

ID, TITLE = "lab", "Lab"
