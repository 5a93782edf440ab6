"""TEAL: which input channels of every matrix to read, and how that is calibrated."""

from .method import TEAL

__all__ = ["TEAL"]
