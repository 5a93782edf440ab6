"""How the compiled CPU kernels store a matrix: rows of codes, a float32 scale a row.

float32 and bfloat16 rows have scale 1; an int8 row's largest magnitude is 127 times its scale. Arithmetic on all of
them is float32, so a transformers model whose float32 weights have been through ``rounded`` computes with the same
numbers as the kernels do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMATS = ("float32", "bfloat16", "int8")


@dataclass(frozen=True, eq=False)
class Rows:
    """``codes`` [rows, columns]: float32, uint16 (the bits of a bfloat16) or int8; ``scales`` float32 [rows]."""

    codes: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it; the scales of formats that need none are not counted."""
        return self.codes.nbytes + (self.scales.nbytes if self.codes.dtype == np.int8 else 0)

    def take(self, rows: np.ndarray) -> Rows:
        return Rows(self.codes[rows], self.scales[rows])


def encode(weight: torch.Tensor, precision: str) -> Rows:
    """``weight`` [rows, columns], any float type, in the format ``precision``.

    Raises:
        UserError: the kernels have no such format.
    """
    matrix = weight.detach().float().contiguous()
    ones = np.ones(matrix.shape[0], dtype=np.float32)
    if precision == "float32":
        return Rows(matrix.numpy(), ones)
    if precision == "bfloat16":
        return Rows(matrix.bfloat16().view(torch.int16).numpy().view(np.uint16), ones)
    if precision == "int8":
        scales = matrix.abs().amax(dim=1) / 127
        codes = (matrix / torch.where(scales > 0, scales, 1)[:, None]).round().to(torch.int8)
        return Rows(codes.numpy(), scales.numpy())
    raise UserError(f"The CPU kernels have no format '{precision}'; they have: {', '.join(FORMATS)}.")


def decode(rows: Rows) -> torch.Tensor:
    """The float32 [rows, columns] values that ``rows`` stands for."""
    if rows.codes.dtype == np.uint16:
        return torch.from_numpy(rows.codes.view(np.int16)).view(torch.bfloat16).float()
    return torch.from_numpy(rows.codes).float() * torch.from_numpy(rows.scales)[:, None]


def rounded(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """``weight`` [rows, columns] as the format holds it, float32."""
    return decode(encode(weight, precision))


def stack(parts: Iterable[Rows]) -> Rows:
    """Equal-shaped matrices as one array each of codes [n, rows, columns] and scales [n, rows]."""
    listed = list(parts)
    return Rows(np.stack([part.codes for part in listed]), np.stack([part.scales for part in listed]))
