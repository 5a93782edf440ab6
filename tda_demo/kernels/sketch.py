"""A low-precision copy of matrices that predicts their products: four bits a weight, one scale a row.

Code c of a row with scale s stands for ``s (c - 7.5)``. The vector it is multiplied with is rounded to int8, one scale
for all of it, so that the products are integers. Two codes share a byte: of every 64 columns the low halves of 32 bytes
hold the first 32, the high halves the others, which is how a vector unit takes them apart. Columns are filled up to 64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..later import torch

BLOCK = 64
MIDDLE = 7.5
X_ONE = 127  # of a rounded vector's largest

_SHRINKINGS = (1.0, 0.9, 0.8, 0.7, 0.6)  # of the largest magnitude; clipping a little costs less than a coarse step


@dataclass(frozen=True, eq=False)
class SketchedRows:
    """``codes`` uint8 [rows, columns / 2, rounded up to 32], ``scales`` float32 [rows]."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        return self.codes.nbytes + self.scales.nbytes


def encode(weight: torch.Tensor) -> SketchedRows:
    """The sketch of ``weight`` [rows, columns]: for every row the scale, of a few, with the least squared error."""
    matrix = weight.detach().float()
    largest = matrix.abs().amax(dim=1, keepdim=True).clamp_min(1e-30)
    least = torch.full_like(largest, torch.inf)
    scales, codes = torch.zeros_like(largest), torch.zeros_like(matrix)
    for shrinking in _SHRINKINGS:
        scale = largest * (shrinking / MIDDLE)
        rounded = (matrix / scale + MIDDLE).round().clamp(0, 15)
        error = ((rounded - MIDDLE) * scale - matrix).square().sum(dim=1, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        scales, codes = torch.where(better, scale, scales), torch.where(better, rounded, codes)
    return SketchedRows(_packed(codes.to(torch.uint8).numpy()), scales[:, 0].contiguous().numpy())


def _packed(codes: np.ndarray) -> np.ndarray:
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % BLOCK)))
    halves = filled.reshape(len(codes), -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1)


def unpacked(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 [rows, columns filled up to 64], one an element."""
    pairs = codes.reshape(len(codes), -1, 1, BLOCK // 2)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(codes), -1)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [T, columns] as whole numbers up to 127, float32, and what one of them stands for, float32 [T, 1]."""
    unit = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / X_ONE
    return (x.float() / unit).round(), unit


def products(sketch: SketchedRows, x: torch.Tensor) -> torch.Tensor:
    """The sketched matrix times ``x`` [T, columns], float32 [T, rows]: what the kernels compute."""
    whole, unit = rounded(x)
    codes = torch.from_numpy(unpacked(sketch.codes)[:, : x.shape[1]]).to(x.device, torch.float32)
    scales = torch.from_numpy(sketch.scales).to(x.device)
    return (whole @ codes.T - MIDDLE * whole.sum(dim=1, keepdim=True)) * scales * unit
