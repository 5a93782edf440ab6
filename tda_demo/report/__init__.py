"""A race or a sweep as one HTML file that needs no network and no other file."""

from .race import race_report
from .sweep import sweep_report

__all__ = ["race_report", "sweep_report"]
