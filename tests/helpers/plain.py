"""TDA without what is ours: no prior, and nothing of the neurons left out. It needs no answers to calibrate on."""

from __future__ import annotations

from typing import Any

from tda_demo.methods import TDA

PLAIN = {"prior": 0.0, "rest": "skip"}
PLAIN_SETTINGS = ["--set", "prior=0", "--set", "rest=skip"]  # the same on the command line
PLAIN_GRID = ["--grid", "tda.prior=0", "--grid", "tda.rest=skip"]  # and of a sweep


def plain_tda(*values: Any, **settings: Any) -> TDA:
    """TDA with these settings and, where they do not say otherwise, those of ``PLAIN``."""
    return TDA(*values, **{**PLAIN, **settings})
