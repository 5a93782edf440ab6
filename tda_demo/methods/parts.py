"""What small int8 matrices of a method's own are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..support.lazy import torch

if TYPE_CHECKING:
    from ..kernels.formats import Rows


def decoded(rows: Rows, device: torch.device) -> torch.Tensor:
    """The values of an int8 matrix, float32 [rows, columns]."""
    codes, scales = (torch.from_numpy(part).to(device) for part in (rows.codes, rows.scales))
    return codes.float() * scales[:, None]
