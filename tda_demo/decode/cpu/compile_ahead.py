"""A second process that compiles what reads prompts while this one compiles the steps, on a machine's first start.

A process compiles one function at a time, for some 40 s before a first race. What either has compiled lies on the disk,
where the other finds it. What the second does is in ``compile_reading``.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import torch

from ...kernels.cpu import is_first_start
from ...kernels.cpu.matmul import WITH_MATMUL
from ...kernels.formats import FORMATS
from ...model.precision import default_precision
from ...support.environment import available_cores
from ...support.interruption import look
from ...support.memory import available_memory
from ...support.progress import Progress, Report

logger = logging.getLogger(__name__)

_LOOK_SECONDS, _MOST_SECONDS = 0.2, 180
_NEEDED_BYTES = 4e9  # each of the two takes up to 1.3e9
_ROOT = Path(__file__).parents[3]
# Not -m, which would import from the folder this process was started in before anywhere else.
PROGRAM = f"""
import sys
root, precision = sys.argv[1:]
if root not in sys.path:
    sys.path.insert(0, root)
from {__package__}.compile_reading import main
main(precision or None)
"""
_started: subprocess.Popen[bytes] | None = None


def compile_ahead(name: str | None, precision: str | None, device: str | None = None) -> None:
    """Begins, where ``name``, as ``load_model`` takes it, is the embedded model, this is a CPU's first start, there is
    room for two, and reading prompts has anything to compile.

    What the second process cannot do is done without it, in this one.
    """
    global _started
    on_cpu = device == "cpu" or (device is None and not torch.cuda.is_available())
    wanted = name is None and on_cpu and _has_prompt_layers(precision or default_precision("cpu"))
    if _started is None and wanted and _has_room() and is_first_start():
        _started = _start(precision)


def _has_prompt_layers(precision: str) -> bool:
    return precision in FORMATS and FORMATS[precision].code_type in WITH_MATMUL


def _has_room() -> bool:
    return bool(sys.executable) and available_cores() > 1 and available_memory() > _NEEDED_BYTES


def _start(precision: str | None) -> subprocess.Popen[bytes] | None:
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, str(_ROOT), precision or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        logger.warning("No second process could be started, so compiling takes longer: %s", error)
        return None


def wait_for_compiling(report: Report) -> None:
    """Returns once the second process, if there is one, has done its part, or cannot."""
    if _started is None or _started.returncode is not None:  # none, or waited for before
        return
    for _ in range(round(_MOST_SECONDS / _LOOK_SECONDS)):
        try:
            if code := _started.wait(_LOOK_SECONDS):
                logger.warning("The second process ended with %d, so compiling takes longer.", code)
            return
        except subprocess.TimeoutExpired:
            look()
            report(Progress("Preparing the compiled layers", 0, 0, "steps"))
    _started.kill()
    _started.wait()
