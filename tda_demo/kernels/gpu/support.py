"""Whether the GPU kernels can run on this machine."""

from __future__ import annotations

import importlib.util
import logging
from functools import cache

import torch

from .attention import rms_norm
from .capture import current_device

logger = logging.getLogger(__name__)


def has_triton() -> bool:
    """Whether Triton is installed (it comes with the CUDA builds of torch)."""
    return importlib.util.find_spec("triton") is not None


@cache
def triton_runs(device: torch.device) -> bool:
    """Whether a program of ours runs on ``device``; the log has the reason where it does not. Tried once.

    Triton may be there and still not work: it builds its launcher with a C compiler and Python's headers, and knows no
    cards of old kinds.
    """
    if not has_triton():
        return False
    try:
        with current_device(device):
            x = torch.ones(1, 16, device=device)
            return torch.equal(rms_norm(x, x[0], 0.0), x)
    except Exception as error:  # each of Triton's steps fails with exceptions of its own
        logger.warning("Triton is installed and cannot run a program on %s: %s", device, error)
        return False
