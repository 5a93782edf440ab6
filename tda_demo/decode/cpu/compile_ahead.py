"""A second process that compiles what reads prompts while this one compiles the steps, on a machine's first start.

A process compiles one function at a time, for some 40 s before a first race. What either has compiled lies on the disk,
where the other finds it. What the second does is in ``compile_reading``.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

from ...kernels.cpu import is_first_start
from ...support.environment import available_cores
from ...support.interruption import look
from ...support.memory import available_memory
from ...support.progress import Progress, Report

logger = logging.getLogger(__name__)

_LOOK_SECONDS, _MOST_SECONDS = 0.2, 180
_NEEDED_BYTES = 4e9  # each of the two takes up to 1.3e9
_ROOT = Path(__file__).parents[3]
_started: subprocess.Popen[bytes] | None = None


def compile_ahead(precision: str | None, device: str | None = None) -> None:
    """Begins, where the embedded model is about to be loaded on a CPU for the first time and there is room for two.

    What the second process cannot do is done without it, in this one.
    """
    global _started
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    if _started is None and on_cpu and _has_room() and is_first_start():
        _started = _start(precision)


def _has_room() -> bool:
    return bool(sys.executable) and available_cores() > 1 and available_memory() > _NEEDED_BYTES


def _start(precision: str | None) -> subprocess.Popen[bytes] | None:
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        return subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.compile_reading", precision or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path},
        )
    except OSError as error:
        logger.warning("No second process could be started, so compiling takes longer: %s", error)
        return None


def wait_for_compiling(report: Report) -> None:
    """Returns once the second process, if there is one, has done its part, or cannot."""
    if _started is None:
        return
    for _ in range(round(_MOST_SECONDS / _LOOK_SECONDS)):
        try:
            _started.wait(_LOOK_SECONDS)
            return
        except subprocess.TimeoutExpired:
            look()
            report(Progress("Preparing the compiled layers", 0, 0, "steps"))
    _started.kill()
