"""The Pareto tab: quality against what it costs, measured points only."""

from __future__ import annotations

from .tab import build

__all__ = ["ID", "TITLE", "build"]

ID, TITLE = "pareto", "Quality & cost"
