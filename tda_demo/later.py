"""torch, imported when it is first used.

The page offers every method, with its settings, before torch is in memory, which takes seconds. So the modules that
come with the registry of methods take ``torch`` from here and touch it inside functions only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["nn", "torch"]

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
