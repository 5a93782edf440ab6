"""WHICH neurons fire. One method, one file, one dataclass; ``base`` holds the contract."""

from .base import ActiveSets, Method, Selector
from .tda import TDA

METHODS: dict[str, type[Method]] = {method.name: method for method in (TDA,)}

__all__ = ["METHODS", "TDA", "ActiveSets", "Method", "Selector"]
