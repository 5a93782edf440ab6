"""What the second process of a first start runs: it loads the embedded model and compiles what reads prompts.

It ends with the one that started it at the latest, whichever way that ends.
"""

from __future__ import annotations

import os
import threading

from ...model.loading import load_model
from ..choose import engine_for
from .compiled_step import CpuStepEngine

ORPHANED = 3  # the exit code of one whose parent has ended


def main(precision: str | None) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    engine = engine_for(load_model(precision=precision, device="cpu"))
    if isinstance(engine, CpuStepEngine):
        engine.warm_up_reading()


def _end_with_parent() -> None:
    """The system closes the other end of the pipe, whatever that process ended by."""
    os.read(0, 1)  # not by sys.stdin, which this thread would hold when Python ends
    os._exit(ORPHANED)
