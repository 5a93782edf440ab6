"""Matrices that a model holds in a kernels' format only (``kernels.formats``), without a float copy beside.

A linear or an embedding of that kind has a ``weight`` like any other, float32, which is decoded whenever it is asked
for and let go again. The compiled kernels multiply with the codes themselves; what they have no product for, and what
has a gradient, is decoded a stretch at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..kernels.formats import ByNeuron, Rows, encode, encode_by_neuron, format_of
from ..kernels.q4 import Numbers, as_numbers
from .projection import Projection

_AT_ONCE = 2**19  # weights decoded at a time: 2 MiB in float32, which stay in a core's cache until they are multiplied


class StoredLinear(nn.Linear):
    """A linear whose ``stored`` codes are all there is of its weight [out, in]."""

    stored: Rows | ByNeuron
    precision: str

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Float32 [out, in], decoded anew."""
        form = format_of(self.precision)
        if isinstance(self.stored, ByNeuron):
            return form.decode_by_neuron(self.stored)
        return form.decode_rows(self.stored.codes, self.stored.scales, self.in_features)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        from ..kernels.cpu.linear import bias_of

        return self._product(input, bias_of(self))

    def product(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` float32 [..., in] times the matrix, the bias left out: [..., out]."""
        return self._product(input, np.empty(0, np.float32))

    def columns(self, neurons: torch.Tensor) -> torch.Tensor:
        """Those of a matrix by neuron that ``neurons`` int64 [k] name, float32 [out, k]."""
        return format_of(self.precision).decode_by_neuron(cast(ByNeuron, self.stored).take(neurons.numpy()))

    def _product(self, input: torch.Tensor, bias: np.ndarray) -> torch.Tensor:
        """The same plus ``bias`` float32 [out], none where it is empty."""
        from ..kernels.cpu.linear import NeuronMajor, RowMajor, compiled

        layout: Any = NeuronMajor if isinstance(self.stored, ByNeuron) else RowMajor
        outputs = compiled(layout(self.stored, bias), input)
        if outputs is not None:
            return outputs
        outputs = self._decoded_product(input)
        return outputs + torch.from_numpy(bias) if bias.size else outputs

    def _decoded_product(self, input: torch.Tensor) -> torch.Tensor:
        x = input.reshape(prod(input.shape[:-1]), self.in_features)
        outputs = self._by_neuron(x, self.stored) if isinstance(self.stored, ByNeuron) else self._by_row(x, self.stored)
        return outputs.view(*input.shape[:-1], self.out_features)

    def _by_row(self, x: torch.Tensor, rows: Rows) -> torch.Tensor:
        """[T, rows] of ``x`` [T, columns]."""
        form, columns = format_of(self.precision), x.T
        parts = _stretches(self.out_features, self.in_features)
        values = (form.decode_rows(rows.codes[part], rows.scales[part], self.in_features) for part in parts)
        none = columns.new_empty(0, len(x))  # of a block of which no neuron is left
        return torch.cat([none, *(each @ columns for each in values)]).T

    def _by_neuron(self, x: torch.Tensor, neurons: ByNeuron) -> torch.Tensor:
        """[T, d] of ``x`` [T, d_ff]."""
        form = format_of(self.precision)
        total = torch.zeros(len(x), self.out_features)
        for part in _stretches(self.in_features, self.out_features):
            total = torch.addmm(total, x[:, part], form.decode_by_neuron(neurons.stretch(part)).T)
        return total


class StoredEmbedding(nn.Embedding):
    """A table of which only the rows asked for are decoded; ``stored`` may be an output head's."""

    stored: Rows
    precision: str

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Float32 [tokens, d], decoded anew."""
        return self._decoded(self.stored)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() == 1:  # of every step: no copy, and no arithmetic that changes nothing
            token = int(input)
            rows = self._decoded(Rows(self.stored.codes[token : token + 1], self.stored.scales[token : token + 1]))
        else:
            rows = self._decoded(self.stored.take(input.flatten().numpy()))
        scale = float(getattr(self, "embed_scale", 1.0))
        return rows.view(*input.shape, -1) * scale if scale != 1 else rows.view(*input.shape, -1)

    def _decoded(self, rows: Rows) -> torch.Tensor:
        return format_of(self.precision).decode_rows(rows.codes, rows.scales, self.embedding_dim)


def store(module: nn.Linear | nn.Embedding, codes: Rows | ByNeuron, precision: str) -> None:
    """Turns ``module`` into one that holds ``codes`` only, in place; its own weight may lie on torch's meta device."""
    holder: Any = module
    del holder._parameters["weight"]
    holder.__class__ = StoredLinear if isinstance(module, nn.Linear) else StoredEmbedding
    holder.stored, holder.precision = codes, precision


def is_stored(module: nn.Module) -> bool:
    """Whether ``module`` holds codes only."""
    return isinstance(module, StoredLinear | StoredEmbedding)


def stored_codes(model: nn.Module) -> Iterator[Rows | ByNeuron]:
    """What the modules of ``model`` that hold codes only have."""
    return (cast(StoredLinear, module).stored for module in model.modules() if is_stored(module))


def rows_of(matrix: Projection | nn.Linear, precision: str) -> Rows:
    """The rows of ``matrix`` in the format ``precision``: those it has, or else encoded from its weight."""
    linear, rows = (matrix.linear, matrix.rows) if isinstance(matrix, Projection) else (matrix, slice(None))
    if isinstance(linear, StoredLinear) and isinstance(linear.stored, Rows) and linear.precision == precision:
        return Rows(linear.stored.codes[rows], linear.stored.scales[rows])
    return encode(matrix.weight, precision)


def neurons_of(down: nn.Linear, precision: str) -> ByNeuron:
    """The columns of ``down`` in the format ``precision``: those it has, or else encoded from its weight."""
    if isinstance(down, StoredLinear) and isinstance(down.stored, ByNeuron) and down.precision == precision:
        return down.stored
    return encode_by_neuron(down.weight, precision)


def _stretches(count: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Of ``count`` stored rows of ``width`` weights, as many at a time as are decoded at once, and a ``multiple``."""
    step = max(1, _AT_ONCE // (width * multiple)) * multiple
    return (slice(first, min(first + step, count)) for first in range(0, count, step))


def numbers_of(matrix: Projection) -> Iterator[Numbers]:
    """The rows of ``matrix``: whole, or some at a time where they have to be decoded."""
    linear = matrix.linear
    if not isinstance(linear, StoredLinear) or not isinstance(linear.stored, Rows):
        yield as_numbers(matrix.weight)
        return
    stored = rows_of(matrix, linear.precision)
    yield from _numbers(stored.codes, stored.scales, linear.in_features, linear.precision, 1)


def neuron_numbers_of(down: nn.Linear, multiple: int) -> Iterator[Numbers]:
    """The columns of ``down``, which holds codes only, over its output scales: whole, or a ``multiple`` at a time."""
    stored = cast(ByNeuron, cast(StoredLinear, down).stored)
    form = format_of(cast(StoredLinear, down).precision)
    form = form.down or form
    scales = np.ones(len(stored.codes), np.float32) if form.is_by_channel else stored.block_scales
    yield from _numbers(stored.codes, scales, down.out_features, form.name, multiple)


def _numbers(codes: np.ndarray, scales: np.ndarray, columns: int, precision: str, multiple: int) -> Iterator[Numbers]:
    if codes.dtype == np.int8:
        yield codes, scales
        return
    for part in _stretches(len(codes), columns, multiple):
        yield as_numbers(format_of(precision).decode_rows(codes[part], scales[part], columns))


def side_by_side(parts: Sequence[np.ndarray]) -> np.ndarray | None:
    """The array that ``parts`` are, one below the other, where they lie so in memory; None where they do not."""
    first = parts[0]
    whole: Any = first.base
    begin = first.ctypes.data
    for part in parts:
        if whole is None or part.base is not whole or part.ctypes.data != begin or not part.flags.c_contiguous:
            return None
        begin += part.nbytes
    shape = (sum(map(len, parts)), *first.shape[1:])
    return np.ndarray(shape, first.dtype, whole, first.ctypes.data - whole.ctypes.data)
