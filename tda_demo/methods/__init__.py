"""WHICH neurons fire. A method is a file and a dataclass; the contracts: ``base``, ``policy``, ``plan``, ``token``."""

from __future__ import annotations

from collections.abc import Iterable

from ..support.errors import UserError
from .base import Method
from .cats import CATS
from .coreinfer import CoreInfer
from .griffin import GRIFFIN
from .magnitude import Magnitude
from .plan import ActiveSets, Plan
from .policy import Policy
from .prior import Prior
from .random import Random
from .sequence import SequencePolicy
from .settings import parse
from .sketch import Sketch
from .tda import TDA
from .teal import TEAL
from .token import TokenPolicy
from .trained.dejavu import DejaVu
from .trained.moefication import MoEfication
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
    Prior,
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
    "Prior",
    "Random",
    "SequencePolicy",
    "Sketch",
    "TokenPolicy",
    "make_method",
    "method_named",
]


def method_named(name: str) -> type[Method]:
    """The method that the command line calls ``name``.

    Raises:
        UserError: there is none.
    """
    if name not in METHODS:
        raise UserError(f"There is no method '{name}'; there are: {', '.join(METHODS)}.")
    return METHODS[name]


def make_method(name: str, assignments: Iterable[str]) -> Method:
    """The method ``name`` with settings like ``["cett=0.2"]``.

    Raises:
        UserError: there is no such method or setting, or a value is out of its range.
    """
    kind = method_named(name)
    return kind(**parse(kind, assignments))
