"""Dynamic activation, measured: ``with TDA(cett=0.2)(load_model()): ...``, and races
between a dense and a sparse arm: ``from tda_demo.race import race``.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .methods import CATS, GRIFFIN, TDA, TEAL, TT, CoreInfer, DejaVu, Magnitude, MoEfication, Prior, Random, Sketch
    from .model.loading import LoadedModel, load_model
    from .race import RaceSettings
    from .support.errors import UserError

# How long OpenMP's threads spin before they sleep, read when torch loads it. The default assumes cores to itself:
# beside another busy process a spinning thread keeps the one it waits for off the core: steps take ten times longer.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_HOME = {
    "CATS": "methods",
    "CoreInfer": "methods",
    "DejaVu": "methods",
    "GRIFFIN": "methods",
    "Magnitude": "methods",
    "MoEfication": "methods",
    "Prior": "methods",
    "Random": "methods",
    "Sketch": "methods",
    "TDA": "methods",
    "TEAL": "methods",
    "TT": "methods",
    "LoadedModel": "model.loading",
    "RaceSettings": "race",
    "UserError": "support.errors",
    "load_model": "model.loading",
}
__all__ = [
    "CATS",
    "GRIFFIN",
    "TDA",
    "TEAL",
    "TT",
    "CoreInfer",
    "DejaVu",
    "LoadedModel",
    "Magnitude",
    "MoEfication",
    "Prior",
    "RaceSettings",
    "Random",
    "Sketch",
    "UserError",
    "load_model",
]


def __getattr__(name: str) -> object:
    # Imported when first asked for, so that the page can answer before torch and transformers are in memory.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
