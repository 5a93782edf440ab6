"""Four bits a weight, and a scale and a minimum in half precision every 32: five in all.

A storage format of whole models on a CPU (``formats``), and of low-bit copies beside others: those that neurons left
out of an active set contribute from, and that predict which neurons to compute. GGUF's Q4_0 and Q4_1 have the same
fields.

Code c of a group of 32 weights stands for ``scale * c + minimum``. The minimum is worth its half bit: groups are not
centred, and with one scale a neuron instead of both a group the embedded model loses six times as much (KL 0.126 nats
per token, one neuron in ten exact, against 0.022). Scales and minima lie beside the codes they belong to, so that a
product reads memory front to back.

``Q4Rows`` has a neuron a row, for gate and up. Of every 64 columns, filled up with zeros, there is a record of 40
bytes: 16 of codes for each of its two groups, whose low halves hold the group's first 16 columns, the high halves the
others; two scales; two minima. A vector unit of 32 bytes thus has the sums of both groups in its two halves.

``Q4Columns`` has a neuron a column, for down, whose groups run along the outputs, both neurons and outputs filled up
with zeros. Of 32 neurons there is a tile: for every 32 outputs 32 scales and 32 minima, and behind all these, for every
32 outputs again, 16 times 32 bytes of codes, each for two neurons by turns, whose low halves hold the first 16 outputs,
the high ones the others. So products of neighbouring bytes belong to one output, and those of 16 neurons fit into 16
bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..support.lazy import torch
from .q4_sizes import GROUP, RECORD, RECORD_BYTES, TILE, TILE_BYTES, X_ONE

_AT_ONCE = 2**19  # weights decoded at a time for a product: 2 MiB in float32, which stay in a core's cache
f32 = np.float32
_CODES = RECORD // 2  # bytes of a record


@dataclass(frozen=True, eq=False)
class Q4Rows:
    """``records`` uint8 [rows, records, 40] of a matrix [rows, ``columns``]."""

    records: np.ndarray
    columns: int

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        return self.records.nbytes

    @property
    def words(self) -> np.ndarray:
        """The records as uint32 [rows, 10 * records], a view."""
        return self.records.reshape(len(self.records), -1).view(np.uint32)

    @classmethod
    def of_words(cls, words: np.ndarray, columns: int) -> Q4Rows:
        """Those whose ``words`` are uint32 [rows, 10 * records]."""
        return cls(words.view(np.uint8).reshape(len(words), -1, RECORD_BYTES), columns)

    @property
    def neuron_nbytes(self) -> int:
        """Bytes of a row."""
        return self.records.shape[1] * RECORD_BYTES


@dataclass(frozen=True, eq=False)
class Q4Columns:
    """``tiles`` uint8 [groups of 32 neurons, 640 for every 32 outputs] of a matrix [outputs, ``neurons``].

    They hold the matrix over ``output_scales`` float32 [outputs], by which compiled steps multiply outputs at the end.
    """

    tiles: np.ndarray
    neurons: int
    output_scales: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it, the output scales aside, which it reads anyway."""
        return self.tiles.nbytes

    @property
    def neuron_nbytes(self) -> int:
        """Bytes of a column."""
        return self.tiles.shape[1] // TILE


Numbers = tuple[np.ndarray, np.ndarray]
"""A matrix: float32 or int8 [rows, columns], and what its rows are to be multiplied with, float32 [rows]."""


def encode(weight: torch.Tensor) -> Q4Rows:
    """The copy of ``weight`` [rows, columns], any float type.

    One whose groups have a scale and a minimum in half precision and codes from 0 to 15, both of them met, is held
    exactly.
    """
    copy = empty_rows(*weight.shape)
    write_rows([as_numbers(weight)], copy)
    return copy


def row_bytes(columns: int) -> int:
    """Of the copy of a row of so many ``columns``."""
    return -(-columns // RECORD) * RECORD_BYTES


def empty_rows(rows: int, columns: int) -> Q4Rows:
    """Memory for the copy of a matrix [rows, columns]."""
    return Q4Rows(np.empty((rows, row_bytes(columns) // RECORD_BYTES, RECORD_BYTES), np.uint8), columns)


def as_numbers(weight: torch.Tensor) -> Numbers:
    """``weight`` [rows, columns], any float type, as the functions here take it."""
    values = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    return values, np.ones(len(values), np.float32)


def write_rows(parts: Iterable[Numbers], copy: Q4Rows) -> None:
    """The copy of ``parts`` that lie one below the other, written into ``copy``."""
    from .cpu import cores
    from .cpu.q4_encode import encode_rows

    row, threads = 0, torch.get_num_threads()
    for numbers, factors in parts:
        with cores(threads):
            encode_rows(numbers, factors, threads, copy.records[row : row + len(numbers)])
        row += len(numbers)


def of_groups(nibbles: np.ndarray, scales: np.ndarray, minima: np.ndarray, columns: int) -> Q4Rows:
    """The rows whose groups have ``nibbles`` uint8 [rows, groups, 16], the codes of their first 16 weights in the lower
    halves, and float16 ``scales`` and ``minima`` [rows, groups]; filled up with zeros to whole records.
    """
    rows, groups = scales.shape
    missing = (0, groups % 2)
    codes = _padded(nibbles, (0, 0), missing).reshape(rows, -1, _CODES)
    numbers = np.concatenate([_padded(each, (0, 0), missing).reshape(rows, -1, 2) for each in (scales, minima)], axis=2)
    return Q4Rows(np.concatenate([codes, numbers.view(np.uint8)], axis=2), columns)


def encode_columns(weight: torch.Tensor, output_scales: np.ndarray) -> Q4Columns:
    """The copy of ``weight`` [outputs, neurons], any float type, with float32 ``output_scales`` [outputs]."""
    by_output = torch.from_numpy(np.where(output_scales > 0, output_scales, f32(1))).to(weight.device)
    copy = Q4Columns(empty_tiles(tiles_of(weight.shape[1]), len(weight)), weight.shape[1], output_scales)
    write_columns([as_numbers((weight.detach().float() / by_output[:, None]).T)], copy)
    return copy


def tiles_of(neurons: int) -> int:
    """How many tiles hold so many neurons."""
    return -(-neurons // TILE)


def empty_tiles(tiles: int, outputs: int) -> np.ndarray:
    """Memory for so many ``Q4Columns.tiles``."""
    return np.empty((tiles, -(-outputs // GROUP) * TILE_BYTES), np.uint8)


def write_columns(parts: Iterable[Numbers], copy: Q4Columns) -> None:
    """The copy of ``parts`` [neurons, outputs], over the output scales already, written into ``copy``.

    Each but the last has a multiple of ``TILE`` neurons.
    """
    from .cpu import cores
    from .cpu.q4_encode import encode_columns

    tile, threads = 0, torch.get_num_threads()
    for numbers, factors in parts:
        last = tile + tiles_of(len(numbers))
        with cores(threads):
            encode_columns(numbers, factors, threads, copy.tiles[tile:last])
        tile = last


def _padded(array: np.ndarray, *missing: tuple[int, int]) -> np.ndarray:
    """``array`` with zeros where they are ``missing``, of its first axes; itself where none are."""
    if not any(map(any, missing)):
        return array
    return np.pad(array, (*missing, *([(0, 0)] * (array.ndim - len(missing)))))


def decode(rows: Q4Rows) -> torch.Tensor:
    """The values it stands for, float32 [rows, columns]."""
    from .cpu import cores
    from .cpu.q4_values import decode as decode_records

    records = rows.records
    values, threads = np.empty((len(records), records.shape[1] * RECORD), np.float32), torch.get_num_threads()
    with cores(threads):
        decode_records(records, threads, values)
    return torch.from_numpy(np.ascontiguousarray(values[:, : rows.columns]))


def decode_columns(columns: Q4Columns) -> torch.Tensor:
    """The values it stands for, float32 [outputs, neurons]."""
    return (_over_output_scales(columns) * _scales(columns)).T


def _over_output_scales(columns: Q4Columns) -> torch.Tensor:
    """The values that its tiles hold, float32 [neurons, outputs]."""
    from .cpu import cores
    from .cpu.q4_values import decode_tiles

    tiles, threads = columns.tiles, torch.get_num_threads()
    values = np.empty((tiles.shape[0] * TILE, tiles.shape[1] // TILE_BYTES * GROUP), np.float32)
    with cores(threads):
        decode_tiles(tiles, threads, values)
    return torch.from_numpy(values[: columns.neurons, : len(columns.output_scales)])


def round_groups(x: torch.Tensor) -> torch.Tensor:
    """``x`` [T, columns] as the kernels take it, float32: of every 32 columns whole 127ths of the largest."""
    groups = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % GROUP)).view(len(x), -1, GROUP)
    unit = groups.abs().amax(dim=2, keepdim=True) / X_ONE
    rounded = (groups / torch.where(unit > 0, unit, 1)).round() * unit
    return rounded.view(len(x), -1)[:, : x.shape[1]]


def multiply(rows: Q4Rows, x: torch.Tensor) -> torch.Tensor:
    """The matrix times ``x`` [T, columns], float32 [T, rows]: what the kernels compute, their order of sums aside."""
    rounded, records = round_groups(x), rows.records
    step = max(1, _AT_ONCE // rows.columns)
    parts = (Q4Rows(records[first : first + step], rows.columns) for first in range(0, len(records), step))
    return torch.cat([rounded @ decode(part).to(x.device).T for part in parts], dim=1)


def multiply_columns(columns: Q4Columns, activations: torch.Tensor) -> torch.Tensor:
    """The matrix times ``activations`` [T, neurons], float32 [T, outputs].

    The kernels round the products of activations and scales to 8 bits, of 32 neurons that lie together: a tenth of what
    four bits cost, and depending on which these are, so it is left out here.
    """
    tiles, device = columns.tiles, activations.device
    step = max(1, _AT_ONCE // (TILE * len(columns.output_scales)))
    total = torch.zeros(len(activations), len(columns.output_scales), device=device)
    for first in range(0, len(tiles), step):
        part = activations[:, first * TILE : (first + step) * TILE].float()
        some = Q4Columns(tiles[first : first + step], part.shape[1], columns.output_scales)
        total = torch.addmm(total, part, _over_output_scales(some).to(device))
    return total * _scales(columns).to(device)


def _scales(columns: Q4Columns) -> torch.Tensor:
    return torch.from_numpy(columns.output_scales)
