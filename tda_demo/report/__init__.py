"""A race or a sweep as one HTML file that needs no network and no other file."""

from .page import race_report, sweep_report

__all__ = ["race_report", "sweep_report"]
