"""How the compiled CPU kernels store a matrix: rows of codes with float32 scales.

float32 and bfloat16 codes are the values themselves. An int8 row has one scale, its largest magnitude over 127; an nf4
row has one every 64 columns (``nf4``). Arithmetic on all of them gives float32, so a transformers model whose float32
weights have been through ``rounded`` computes with the same numbers as the kernels do.

A down projection is stored by neuron, its columns being the rows of codes, so that an active set is some of them. Its
int8 scales still belong to its outputs: one for every neuron would cost more precision (KL 0.034 nats per token on the
embedded model, against 0.005). Its nf4 blocks lie along a neuron.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..later import torch
from . import nf4

FORMATS = ("float32", "bfloat16", "int8", "nf4")
_NF4_CODE = np.dtype(np.uint8)


@dataclass(frozen=True, eq=False)
class Rows:
    """``codes`` [rows, ...] of one type: float32, uint16 (bits of a bfloat16), int8, or uint8 (two nf4 codes).

    ``scales`` are float32: int8 [rows], nf4 [rows, blocks]; the other types have [rows] ones, which nothing reads from
    memory twice and nobody counts.
    """

    codes: np.ndarray
    scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        return self.codes.nbytes + (self.scales.nbytes if has_scales(self.codes) else 0)

    def take(self, rows: np.ndarray) -> Rows:
        return Rows(self.codes[rows], self.scales[rows])


@dataclass(frozen=True, eq=False)
class ByNeuron:
    """A down projection [d, d_ff] by neuron: ``codes`` [d_ff, ...].

    ``block_scales`` float32 [d_ff, blocks] are nf4's ([d_ff, 0] elsewhere); ``output_scales`` float32 [d] are int8's
    (ones elsewhere), applied after the sum over neurons.
    """

    codes: np.ndarray
    block_scales: np.ndarray
    output_scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        outputs = self.output_scales.nbytes if self.codes.dtype == np.int8 else 0
        return self.codes.nbytes + self.block_scales.nbytes + outputs

    def take(self, neurons: np.ndarray) -> ByNeuron:
        return ByNeuron(self.codes[neurons], self.block_scales[neurons], self.output_scales)


def has_scales(codes: np.ndarray) -> bool:
    """Whether codes of this type mean something only together with their scales."""
    return codes.dtype in (np.int8, _NF4_CODE)


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
    if precision == "nf4":
        return Rows(*nf4.encode(matrix))
    raise UserError(f"The CPU kernels have no format '{precision}'; they have: {', '.join(FORMATS)}.")


def encode_by_neuron(down: torch.Tensor, precision: str) -> ByNeuron:
    """``down`` [d, d_ff], any float type, in the format ``precision``.

    Raises:
        UserError: the kernels have no such format.
    """
    width, d_ff = down.shape
    if precision == "nf4":
        rows = encode(down.T, precision)
        return ByNeuron(rows.codes, rows.scales, np.ones(width, np.float32))
    rows = encode(down, precision)
    return ByNeuron(np.ascontiguousarray(rows.codes.T), np.empty((d_ff, 0), np.float32), rows.scales)


def rounded(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """``weight`` [rows, columns] as ``encode`` holds it, float32."""
    rows = encode(weight, precision)
    if rows.codes.dtype == np.uint16:
        return torch.from_numpy(rows.codes.view(np.int16)).view(torch.bfloat16).float()
    if rows.codes.dtype == _NF4_CODE:
        return nf4.decode(rows.codes, rows.scales, weight.shape[1])
    return torch.from_numpy(rows.codes).float() * torch.from_numpy(rows.scales)[:, None]


def rounded_by_neuron(down: torch.Tensor, precision: str) -> torch.Tensor:
    """``down`` [d, d_ff] as ``encode_by_neuron`` holds it, float32."""
    return rounded(down.T, precision).T.contiguous() if precision == "nf4" else rounded(down, precision)


def stack(parts: Iterable[Rows]) -> Rows:
    """Equal-shaped matrices as one array each of codes [n, rows, ...] and scales [n, rows, ...]."""
    listed = list(parts)
    return Rows(np.stack([part.codes for part in listed]), np.stack([part.scales for part in listed]))
