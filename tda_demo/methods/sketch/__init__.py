"""Sketch: a 4-bit copy of a block does the work of most neurons."""

from .method import Sketch

__all__ = ["Sketch"]
