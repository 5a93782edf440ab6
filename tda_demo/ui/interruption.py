"""Models that look whether their work has been given up (``support.interruption``) in every block they run.

So no pass of any kind goes on for longer than a part of a layer. Compiled layers, which run no module, look themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..support.interruption import look

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


def interruptible(lm: LoadedModel) -> LoadedModel:
    """``lm`` with a look before the first and the last matrix of each of its blocks; copies of its modules look too."""
    for block in lm.blocks:
        for linear in (block.linears[0], block.down):
            linear.register_forward_pre_hook(_look)
    return lm


def _look(_module: Any, _inputs: Any) -> None:
    look()
