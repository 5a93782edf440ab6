"""Where the GPU kernels' tests run: on the card where there is one, else on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import os

import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read as Triton is imported, which transformers does too
ON_A_CARD = [pytest.mark.gpu] if CUDA else []  # for `pytest -m gpu`, where the same cases run for real
DEVICE = torch.device("cuda" if CUDA else "cpu")
# The interpreter of Triton 3.9 stores wrong bfloat16 values; a card stores right ones.
DTYPES = (torch.float32, torch.float16, torch.bfloat16) if CUDA else (torch.float32, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """``||out - reference|| / ||reference||`` in float64, of a reference of at least 0.1 an element.

    Below that float32 itself is off by more than the tolerances: a GELU's tail is the difference of two numbers near 1.
    """
    reference = reference.double().cpu()
    difference = (out.double().cpu() - reference).norm()
    return float(difference / reference.norm().clamp_min(0.1 * max(reference.numel(), 1) ** 0.5))
