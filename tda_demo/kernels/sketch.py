"""A low-precision copy of matrices that predicts their products: four bits a weight, one scale a neuron.

Code c of a neuron with scale s stands for ``s (c - 7.5)``. What it is multiplied with is rounded to int8, so that the
products are integers. Two codes share a byte, in an order in which a vector unit takes them apart.

``SketchedRows`` has a neuron a row, for gate and up: one scale for the whole vector; of every 64 columns the low halves
of 32 bytes hold the first 32, the high halves the others. Columns are filled up to 64.

``SketchedColumns`` has a neuron a column, for down: 16 neurons are added up at a time, and their activations share a
scale. Of every 32 columns of 16 neurons there are 8 times 32 bytes, each for two neurons by turns, whose low halves
hold the first 16 columns, the high ones the others. Columns are filled up to 32 and neurons to 16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..support.lazy import torch

BLOCK = 64
MIDDLE = 7.5
X_ONE = 127  # of a rounded vector's largest
GROUP = 16  # neurons
CHUNK = 32  # columns

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


@dataclass(frozen=True, eq=False)
class SketchedColumns:
    """``codes`` uint8 [groups, chunks, 8, 32], ``scales`` float32 [neurons].

    The products are those of a matrix whose outputs still have to be multiplied with ``output_scales`` float32 [d].
    """

    codes: np.ndarray
    scales: np.ndarray
    output_scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it, the output scales aside, which it reads anyway."""
        return self.codes.nbytes + self.scales.nbytes


def encode(weight: torch.Tensor) -> SketchedRows:
    """The sketch of ``weight`` [neurons, columns]."""
    codes, scales = _nearest(weight.detach().float())
    return SketchedRows(_pack(codes), scales)


def encode_columns(weight: torch.Tensor, output_scales: np.ndarray) -> SketchedColumns:
    """The sketch of ``weight`` [d, neurons], whose outputs the kernels scale by ``output_scales`` float32 [d]."""
    scales = torch.from_numpy(np.where(output_scales > 0, output_scales, np.float32(1)))
    codes, neuron_scales = _nearest((weight.detach().float().cpu() / scales[:, None]).T)
    return SketchedColumns(_group(codes), neuron_scales, output_scales)


def _nearest(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes uint8 [rows, columns] and scales float32 [rows]: of a few scales the one with the least squared error."""
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
    return codes.to(torch.uint8).cpu().numpy(), scales[:, 0].contiguous().cpu().numpy()


def _pack(codes: np.ndarray) -> np.ndarray:
    filled = np.pad(codes, ((0, 0), (0, -codes.shape[1] % BLOCK)))
    halves = filled.reshape(len(codes), -1, 2, BLOCK // 2)
    return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(codes), -1)


def unpack(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 [rows, columns filled up to 64], one an element."""
    pairs = codes.reshape(len(codes), -1, 1, BLOCK // 2)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(len(codes), -1)


def _group(codes: np.ndarray) -> np.ndarray:
    filled = np.pad(codes, ((0, -len(codes) % GROUP), (0, -codes.shape[1] % CHUNK)))
    parts = filled.reshape(len(filled) // GROUP, GROUP // 2, 2, -1, 2, CHUNK // 2)  # group, pair, turn, chunk, half
    by_turns = parts.transpose(0, 3, 1, 4, 5, 2).reshape(len(parts), parts.shape[3], GROUP // 2, 2, CHUNK)
    return by_turns[:, :, :, 0] | by_turns[:, :, :, 1] << 4


def ungroup(codes: np.ndarray) -> np.ndarray:
    """Codes uint8 [neurons filled up to 16, columns filled up to 32], one an element."""
    halves = np.stack([codes & 15, codes >> 4], axis=3)
    parts = halves.reshape(*codes.shape[:3], 2, CHUNK // 2, 2)
    return parts.transpose(0, 2, 5, 1, 3, 4).reshape(len(codes) * GROUP, -1)


def decode(sketch: SketchedRows) -> torch.Tensor:
    """The values it stands for, float32 [rows, columns filled up to 64]."""
    codes = torch.from_numpy(unpack(sketch.codes)).float()
    return (codes - MIDDLE) * torch.from_numpy(sketch.scales)[:, None]


def decode_columns(sketch: SketchedColumns) -> torch.Tensor:
    """The values it stands for, float32 [d, neurons]."""
    scales, output_scales = torch.from_numpy(sketch.scales), torch.from_numpy(sketch.output_scales)
    codes = torch.from_numpy(ungroup(sketch.codes)[: len(scales), : len(output_scales)]).float()
    return ((codes - MIDDLE) * scales[:, None] * output_scales).T


def round_to_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x`` [T, columns] as whole numbers up to 127, float32, and what one of them stands for, float32 [T, 1]."""
    unit = x.float().abs().amax(dim=1, keepdim=True).clamp_min(1e-30) / X_ONE
    return (x.float() / unit).round(), unit


def multiply(sketch: SketchedRows, x: torch.Tensor) -> torch.Tensor:
    """The sketched matrix times ``x`` [T, columns], float32 [T, rows]: what the kernels compute."""
    whole, unit = round_to_int8(x)
    codes = torch.from_numpy(unpack(sketch.codes)[:, : x.shape[1]]).to(x.device, torch.float32)
    scales = torch.from_numpy(sketch.scales).to(x.device)
    return (whole @ codes.T - MIDDLE * whole.sum(dim=1, keepdim=True)) * scales * unit


def multiply_columns(sketch: SketchedColumns, activations: torch.Tensor) -> torch.Tensor:
    """The sketched matrix times ``activations`` [T, neurons], float32 [T, d]: what the kernels compute."""
    device, neurons = activations.device, activations.shape[1]
    scaled = activations.float() * torch.from_numpy(sketch.scales).to(device)
    groups = torch.nn.functional.pad(scaled, (0, -neurons % GROUP)).view(len(scaled), -1, GROUP)
    unit = groups.abs().amax(dim=2, keepdim=True).clamp_min(1e-30) / X_ONE
    rounded = ((groups / unit).round() * unit).view(len(scaled), -1)
    codes = torch.from_numpy(ungroup(sketch.codes)[:, : len(sketch.output_scales)]).to(device, torch.float32)
    return (rounded @ (codes - MIDDLE)) * torch.from_numpy(sketch.output_scales).to(device)
