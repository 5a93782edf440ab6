"""Claim 2, uncertainty: how it is measured, what a predictor transfers, and the verdict."""

from .measure import Uncertainty

__all__ = ["Uncertainty"]
