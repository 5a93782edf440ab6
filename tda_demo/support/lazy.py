"""torch, imported when it is first used.

The page offers every method, with its settings, before torch is in memory, which takes seconds. So the modules that
come with the registry of methods take ``torch`` from here and touch it inside functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["inference_mode", "nn", "no_grad", "torch"]

if TYPE_CHECKING:
    import torch
    from torch import nn
else:

    class _Later:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(import_module(self._name), attribute)

    torch, nn = _Later("torch"), _Later("torch.nn")


def inference_mode(function: Callable[P, R]) -> Callable[P, R]:
    """``@torch.inference_mode()`` for a function, without torch until it is called."""
    return _within("inference_mode", function)


def no_grad(function: Callable[P, R]) -> Callable[P, R]:
    """``@torch.no_grad()`` for a function, without torch until it is called."""
    return _within("no_grad", function)


def _within(mode: str, function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        with getattr(torch, mode)():
            return function(*arguments, **named)

    return run
