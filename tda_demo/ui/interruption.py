"""Ending work that is deep inside a model: a pass over a long prompt, a calibration, a judgement.

What runs as a page's job may be given up at any moment. ``looking`` says how that is known; a model made
``interruptible`` asks it in every block it runs, so no pass of any kind goes on for longer than a part of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..model.loading import LoadedModel

_look: ContextVar[Callable[[], None] | None] = ContextVar("look", default=None)


class GivenUp(Exception):
    """Breaks off work whose visitor has stopped waiting for it, or which has had its time."""


@contextmanager
def looking(check: Callable[[], None]) -> Iterator[None]:
    """Within the context, interruptible models call ``check``, which raises GivenUp to end what they do."""
    token = _look.set(check)
    try:
        yield
    finally:
        _look.reset(token)


def interruptible(lm: LoadedModel) -> LoadedModel:
    """``lm`` with a look before the first and the last matrix of each of its blocks; copies of its modules look too."""
    for block in lm.blocks:
        for linear in (block.linears[0], block.down):
            linear.register_forward_pre_hook(_ask)
    return lm


def _ask(_module: Any, _inputs: Any) -> None:
    if (check := _look.get()) is not None:
        check()
