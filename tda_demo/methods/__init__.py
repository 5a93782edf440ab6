"""WHICH neurons fire. A method is a file and a dataclass; the contracts: ``base``, ``policy``, ``plan``, ``token``."""

from .base import Method
from .cats import CATS
from .coreinfer import CoreInfer
from .dejavu import DejaVu
from .griffin import GRIFFIN
from .magnitude import Magnitude
from .moefication import MoEfication
from .plan import ActiveSets, Plan
from .policy import Policy, Selector
from .random import Random
from .sketch import Sketch
from .tda import TDA
from .teal import TEAL
from .token import TokenRule
from .tt import TT

_ALL: tuple[type[Method], ...] = (
    TDA,
    Sketch,
    GRIFFIN,
    CoreInfer,
    CATS,
    TEAL,
    TT,
    DejaVu,
    MoEfication,
    Random,
    Magnitude,
)
METHODS: dict[str, type[Method]] = {method.name: method for method in _ALL}

__all__ = [
    "CATS",
    "GRIFFIN",
    "METHODS",
    "TDA",
    "TEAL",
    "TT",
    "ActiveSets",
    "CoreInfer",
    "DejaVu",
    "Magnitude",
    "Method",
    "MoEfication",
    "Plan",
    "Policy",
    "Random",
    "Selector",
    "Sketch",
    "TokenRule",
]
