"""Claim 3, inertia: how it is measured (probes, drift) and the verdict."""

from .measure import Inertia

__all__ = ["Inertia"]
