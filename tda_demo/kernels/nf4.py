"""NF4, the 4-bit format of QLoRA (arXiv 2305.14314) and bitsandbytes: 16 levels, a float32 scale every 64 columns.

The levels are those of bitsandbytes (``VALUES``) rounded to 14 bits, which moves a weight by at most 3e-5 of its
block's largest: so that products can be taken in 16-bit integers, as the compiled loops do.

A block is 32 bytes. The low nibbles hold its columns 0 to 31, the high ones 32 to 63, in the order ``_PLACES``: the one
in which a processor's byte shuffles, which work within 16 bytes, give them back in sequence.
"""

from __future__ import annotations

import numpy as np

from ..support.lazy import torch

BLOCK = 64
ONE = 2**14
VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
LEVELS = np.round(np.array(VALUES) * ONE).astype(np.int16)  # a code's value is LEVELS[code] / ONE
_PLACES = np.arange(32).reshape(2, 2, 8).swapaxes(0, 1).reshape(32)  # byte p holds the columns _PLACES[p] and + 32
COLUMN_OF = np.concatenate([_PLACES, _PLACES + 32])  # of the block's nibbles, the low ones first


def blocks(columns: int) -> int:
    """How many blocks a row of so many columns takes; the last one is filled up with zeros."""
    return -(-columns // BLOCK)


def encode(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, columns] -> codes uint8 [rows, 32 * blocks] and scales float32 [rows, blocks].

    A weight takes the level nearest to it over its block's largest magnitude, which is the block's scale.
    """
    rows, columns = matrix.shape
    padded = torch.nn.functional.pad(matrix, (0, blocks(columns) * BLOCK - columns)).reshape(rows, -1, BLOCK)
    scales = padded.abs().amax(dim=2)
    levels = torch.from_numpy(LEVELS).float() / ONE
    relative = padded / torch.where(scales > 0, scales, 1)[:, :, None]
    nearest = torch.bucketize(relative, (levels[1:] + levels[:-1]) / 2)
    nibbles = nearest.to(torch.uint8).numpy()[:, :, COLUMN_OF]
    codes = nibbles[:, :, :32] | (nibbles[:, :, 32:] << 4)
    return np.ascontiguousarray(codes.reshape(rows, -1)), scales.numpy()


def decode(codes: np.ndarray, scales: np.ndarray, columns: int) -> torch.Tensor:
    """The float32 [rows, columns] values that ``codes`` and ``scales`` stand for."""
    in_blocks = codes.reshape(*scales.shape, 32)
    values = np.empty((*scales.shape, BLOCK), np.float32)
    values[:, :, COLUMN_OF] = LEVELS[np.concatenate([in_blocks & 15, in_blocks >> 4], axis=2)] / np.float32(ONE)
    values *= scales[:, :, None]
    return torch.from_numpy(values.reshape(len(codes), -1)[:, :columns].copy())
