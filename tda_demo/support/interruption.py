"""Ending work that is deep inside something else: a pass over a long prompt, a calibration, a judgement.

What runs as a page's job may be given up at any moment. ``looking`` says how that is known, and whatever takes long
asks by ``look``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_look: ContextVar[Callable[[], None] | None] = ContextVar("look", default=None)


class GivenUp(Exception):
    """Breaks off work whose visitor has stopped waiting for it, or which has had its time."""


@contextmanager
def looking(check: Callable[[], None]) -> Iterator[None]:
    """Within the context, ``look`` calls ``check``, which raises GivenUp to end what is done."""
    token = _look.set(check)
    try:
        yield
    finally:
        _look.reset(token)


def look() -> None:
    """Raises GivenUp where the work of this context has been given up."""
    if (check := _look.get()) is not None:
        check()
