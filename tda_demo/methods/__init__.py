"""WHICH neurons fire. One method, one file, one dataclass; ``base`` holds the contract."""

from .base import ActiveSets, Method, Selector
from .coreinfer import CoreInfer
from .griffin import GRIFFIN
from .magnitude import Magnitude
from .random import Random
from .tda import TDA

METHODS: dict[str, type[Method]] = {method.name: method for method in (TDA, GRIFFIN, CoreInfer, Random, Magnitude)}

__all__ = [
    "GRIFFIN",
    "METHODS",
    "TDA",
    "ActiveSets",
    "CoreInfer",
    "Magnitude",
    "Method",
    "Random",
    "Selector",
]
