"""How the compiled CPU kernels store a matrix: rows of codes with float32 scales.

float32 and bfloat16 codes are the values themselves. An int8 row has one scale, its largest magnitude over 127; an nf4
row has one every 64 columns (``nf4``); q4 codes have scales and minima of their own among them (``q4``). Arithmetic on
all of them gives float32, so a transformers model whose float32 weights have been through ``round_by_row`` computes
with the same numbers as the kernels do.

A down projection is stored by neuron, its columns being the rows of codes, so that an active set is some of them. Its
int8 scales still belong to its outputs: one for every neuron would cost more precision (KL 0.034 nats per token on the
embedded model, against 0.005). Its nf4 blocks lie along a neuron. With q4 it is int8: groups along a neuron are not
those that a 4-bit file has along a row, and to round down anew costs 0.057 nats per token, 8 bits 0.002.

A new format is a ``Format`` in ``FORMATS``; the kernels' loops (``cpu.rows``) choose by the type of its codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..support.errors import UserError
from ..support.lazy import torch
from . import nf4, q4


@dataclass(frozen=True, eq=False)
class Rows:
    """``codes`` [rows, ...] of one type: float32, uint16 (bits of a bfloat16), int8, uint8 (two nf4 codes), or uint32
    (q4 records, ten each).

    ``scales`` are float32: int8 [rows], nf4 [rows, blocks]; the other types have ones [rows], which do not count
    among the bytes a step reads.
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
    def neuron_nbytes(self) -> int:
        """Bytes a step reads of the neurons themselves: not of the scales that belong to outputs."""
        return self.codes.nbytes + self.block_scales.nbytes

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        return self.neuron_nbytes + (self.output_scales.nbytes if has_output_scales(self.codes) else 0)

    def take(self, neurons: np.ndarray) -> ByNeuron:
        return ByNeuron(self.codes[neurons], self.block_scales[neurons], self.output_scales)

    def stretch(self, neurons: slice) -> ByNeuron:
        """Some that lie together, as views."""
        return ByNeuron(self.codes[neurons], self.block_scales[neurons], self.output_scales)


def _touched(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that all threads have touched: on a virtual machine this takes one of them longer than filling it."""
    array = np.empty(shape, dtype)
    _tensor(array).zero_()
    return array


def _tensor(array: np.ndarray) -> torch.Tensor:
    """The same memory, whole numbers whatever it holds: torch does not know all types."""
    return torch.from_numpy(array.view(f"i{array.itemsize}"))


_TURNED_OVER = 640  # neurons at a time, whose bytes stay in the processor's cache

Encode = Callable[["torch.Tensor"], tuple[np.ndarray, np.ndarray]]
Decode = Callable[[np.ndarray, np.ndarray, int], "torch.Tensor"]


@dataclass(frozen=True)
class Format:
    """One way to store a matrix.

    Args:
        name: also of the precision whose matrices are stored so.
        code_type: of the elements of ``codes``. Formats that share a type also share the facts below.
        scales: what a scale is for: a ``row``, a ``block`` of a row's columns, or there are ``none``; ``record`` where
            they are among the codes.
        encode_rows: float32 [rows, columns] to codes and scales.
        decode_rows: codes, scales and the number of columns to the float32 values [rows, columns] they stand for.
        nibbles: whether two codes share a byte, which the kernels take apart as they read.
        down: the format of down projections by neuron, where it is another one.
        count_row_bytes: those of a row of so many columns, of a format whose encoding has to be compiled first.
    """

    name: str
    code_type: type[np.generic]
    scales: Literal["none", "row", "block", "record"]
    encode_rows: Encode
    decode_rows: Decode
    nibbles: bool = False
    down: Format | None = None
    count_row_bytes: Callable[[int], int] | None = None

    @property
    def is_by_channel(self) -> bool:
        """Whether any matrix can be stored by column with the values it has by row.

        Blocks along a row cannot: by column the matrix would have to be rounded again.
        """
        return self.scales in ("none", "row")

    def encode(self, weight: torch.Tensor) -> Rows:
        """``weight`` [rows, columns], any float type."""
        return Rows(*self.encode_rows(weight.detach().float().contiguous()))

    def encode_by_neuron(self, down: torch.Tensor) -> ByNeuron:
        """``down`` [d, d_ff], any float type."""
        if self.down is not None:
            return self.down.encode_by_neuron(down)
        if not self.is_by_channel:
            neurons = self.encode(down.T)
            return ByNeuron(neurons.codes, neurons.scales, np.ones(len(down), np.float32))
        rows = self.encode(down)
        return self.turn_over(rows, np.empty(rows.codes.T.shape, rows.codes.dtype))

    def turn_over(self, rows: Rows, codes: np.ndarray) -> ByNeuron:
        """The down projection whose ``rows`` are in this format, which ``is_by_channel``; written into ``codes``."""
        d_ff = len(codes)
        source, target = _tensor(rows.codes), _tensor(codes)
        for first in range(0, d_ff, _TURNED_OVER):
            part = slice(first, first + _TURNED_OVER)
            target[part].copy_(source[:, part].T)
        return ByNeuron(codes, np.empty((d_ff, 0), np.float32), rows.scales)

    def empty(self, rows: int, columns: int) -> Rows:
        """Memory for a matrix [rows, columns]."""
        like = self.encode(torch.zeros(1, columns))
        return Rows(*(_touched((rows, *part.shape[1:]), part.dtype) for part in (like.codes, like.scales)))

    def empty_by_neuron(self, width: int, d_ff: int) -> ByNeuron:
        """Memory for a down projection [width, d_ff]."""
        like = self.encode_by_neuron(torch.zeros(width, 1))
        codes, scales = (_touched((d_ff, *part.shape[1:]), part.dtype) for part in (like.codes, like.block_scales))
        return ByNeuron(codes, scales, np.empty(width, np.float32))

    def decode_by_neuron(self, neurons: ByNeuron) -> torch.Tensor:
        """The down projection float32 [d, d_ff] that ``neurons`` stand for."""
        if self.down is not None:
            return self.down.decode_by_neuron(neurons)
        width, ones = len(neurons.output_scales), np.ones(len(neurons.codes), np.float32)
        scales = ones if self.is_by_channel else neurons.block_scales
        values = self.decode_rows(neurons.codes, scales, width)
        return (values * torch.from_numpy(neurons.output_scales)).T

    def round(self, weight: torch.Tensor) -> torch.Tensor:
        """``weight`` [rows, columns] as ``encode`` holds it, float32."""
        rows = self.encode(weight)
        return self.decode_rows(rows.codes, rows.scales, weight.shape[1])

    def round_by_neuron(self, down: torch.Tensor) -> torch.Tensor:
        """``down`` [d, d_ff] as ``encode_by_neuron`` holds it, float32."""
        if self.down is not None:
            return self.down.round_by_neuron(down)
        return self.round(down) if self.is_by_channel else self.round(down.T).T.contiguous()

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of ``columns`` weights, its scales included."""
        if self.count_row_bytes is not None:
            return self.count_row_bytes(columns)
        return self.encode(torch.zeros(1, columns)).nbytes

    def column_bytes(self, rows: int) -> int:
        """Bytes of one column of ``rows`` weights where columns are stored: scales of outputs do not belong to it."""
        return self.encode_by_neuron(torch.zeros(rows, 1)).neuron_nbytes


def _ones(matrix: torch.Tensor) -> np.ndarray:
    return np.ones(matrix.shape[0], dtype=np.float32)


def _encode_float32(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return matrix.numpy(), _ones(matrix)


def _encode_bfloat16(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return matrix.bfloat16().view(torch.int16).numpy().view(np.uint16), _ones(matrix)


def _decode_bfloat16(codes: np.ndarray, _scales: np.ndarray, _columns: int) -> torch.Tensor:
    return torch.from_numpy(codes.view(np.int16)).view(torch.bfloat16).float()


def _encode_int8(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    scales = matrix.abs().amax(dim=1) / 127
    codes = (matrix / torch.where(scales > 0, scales, 1)[:, None]).round_().to(torch.int8)
    return codes.numpy(), scales.numpy()


def _decode_scaled(codes: np.ndarray, scales: np.ndarray, _columns: int) -> torch.Tensor:
    return torch.from_numpy(codes).float() * torch.from_numpy(scales)[:, None]


def _encode_q4(matrix: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    return q4.encode(matrix).words, _ones(matrix)


def _decode_q4(codes: np.ndarray, _scales: np.ndarray, columns: int) -> torch.Tensor:
    return q4.decode(q4.Q4Rows.of_words(codes, columns))


FLOAT32 = Format("float32", np.float32, "none", _encode_float32, _decode_scaled)
BFLOAT16 = Format("bfloat16", np.uint16, "none", _encode_bfloat16, _decode_bfloat16)
INT8 = Format("int8", np.int8, "row", _encode_int8, _decode_scaled)
NF4 = Format("nf4", np.uint8, "block", nf4.encode, nf4.decode, nibbles=True)
Q4 = Format("q4", np.uint32, "record", _encode_q4, _decode_q4, nibbles=True, down=INT8, count_row_bytes=q4.row_bytes)
FORMATS: dict[str, Format] = {form.name: form for form in (FLOAT32, BFLOAT16, INT8, Q4, NF4)}


def format_of(precision: str) -> Format:
    """The format of the matrices of a model in ``precision``.

    Raises:
        UserError: the kernels have no such format.
    """
    if precision not in FORMATS:
        raise UserError(f"The CPU kernels have no format '{precision}'; they have: {', '.join(FORMATS)}.")
    return FORMATS[precision]


def encode(weight: torch.Tensor, precision: str) -> Rows:
    """``weight`` [rows, columns], any float type, in the format ``precision``; raises as ``format_of``."""
    return format_of(precision).encode(weight)


def encode_by_neuron(down: torch.Tensor, precision: str) -> ByNeuron:
    """``down`` [d, d_ff], any float type, in the format ``precision``; raises as ``format_of``."""
    return format_of(precision).encode_by_neuron(down)


def round_by_row(weight: torch.Tensor, precision: str) -> torch.Tensor:
    """``weight`` [rows, columns] as ``encode`` holds it, float32."""
    return format_of(precision).round(weight)


def round_by_neuron(down: torch.Tensor, precision: str) -> torch.Tensor:
    """``down`` [d, d_ff] as ``encode_by_neuron`` holds it, float32."""
    return format_of(precision).round_by_neuron(down)


def has_scales(codes: np.ndarray) -> bool:
    """Whether codes of this type mean something only together with scales that are not among them."""
    return any(form.scales in ("row", "block") for form in _formats_of(codes))


def has_output_scales(codes: np.ndarray) -> bool:
    """Whether a down projection in codes of this type has scales that belong to its outputs."""
    return any(form.scales == "row" for form in _formats_of(codes))


def has_nibbles(codes: np.ndarray) -> bool:
    """Whether elements of this type hold two codes, which the kernels take apart as they read."""
    return any(form.nibbles for form in _formats_of(codes))


def _formats_of(codes: np.ndarray) -> Iterable[Format]:
    """The formats whose codes are of this type."""
    return (form for form in FORMATS.values() if codes.dtype == form.code_type)


def stack(parts: Iterable[Rows]) -> Rows:
    """Equal-shaped matrices as one array each of codes [n, rows, ...] and scales [n, rows, ...]."""
    listed = list(parts)
    return Rows(np.stack([part.codes for part in listed]), np.stack([part.scales for part in listed]))
