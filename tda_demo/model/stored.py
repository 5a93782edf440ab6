"""Matrices that a model holds in a kernels' format only (``kernels.formats``), without a float copy beside.

A linear or an embedding of that kind has a ``weight`` like any other, float32, which is decoded whenever it is asked
for and let go again: at most one matrix at a time is held in floats. The compiled kernels read the codes themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from ..kernels.formats import ByNeuron, Rows, encode, encode_by_neuron, format_of
from .projection import Projection

_AT_ONCE = 2**24  # weights decoded at a time: 64 MiB in float32


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
        if isinstance(self.stored, ByNeuron) or self.weight_count <= _AT_ONCE:
            return nn.functional.linear(input, self.weight, self.bias)
        outputs = torch.cat([nn.functional.linear(input, weight) for weight in self._stretches()], dim=-1)
        return outputs if self.bias is None else outputs + self.bias

    @property
    def weight_count(self) -> int:
        return self.in_features * self.out_features

    def _stretches(self) -> Iterator[torch.Tensor]:
        """The weight's rows, some at a time."""
        form, step = format_of(self.precision), max(1, _AT_ONCE // self.in_features)
        for start in range(0, self.out_features, step):
            codes, scales = (part[start : start + step] for part in (self.stored.codes, cast(Rows, self.stored).scales))
            yield form.decode_rows(codes, scales, self.in_features)


class StoredEmbedding(nn.Embedding):
    """A table of which only the rows asked for are decoded; ``stored`` may be an output head's."""

    stored: Rows
    precision: str

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """Float32 [tokens, d], decoded anew."""
        return self._decoded(self.stored)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = self._decoded(self.stored.take(input.flatten().numpy()))
        return rows.view(*input.shape, -1) * float(getattr(self, "embed_scale", 1.0))

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


def joined(parts: list[Rows]) -> Rows:
    """Matrices of as many columns one below the other."""
    if len(parts) == 1:
        return parts[0]
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scales")))
