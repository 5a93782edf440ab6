"""Low-bit copies of a model's feed-forward blocks, made once for all methods that use them.

In the format of the CPU's kernels (``kernels.q4``), and for the rest of active sets on a GPU in that of its kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary

import numpy as np

from ..kernels.activations import activation_of
from ..kernels.formats import Q4
from ..kernels.nf4 import BLOCK
from ..kernels.q4 import (
    Q4Columns,
    Q4Rows,
    empty_rows,
    empty_tiles,
    encode_columns,
    multiply,
    multiply_columns,
    tiles_of,
    write_columns,
    write_rows,
)
from ..kernels.q4_sizes import TILE
from ..model.configuration import Activation, activation_function
from ..model.feedforward import FeedForward
from ..model.projection import Projection
from ..support.errors import UserError
from ..support.lazy import torch
from ..support.memory import trim_memory
from ..support.progress import Progress, Report, silent
from .rest import Rest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..kernels.gpu.nf4 import Nf4Matrices
    from ..model.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class BlockCopy:
    """A block in five bits a weight; ``gate`` is None in plain blocks.

    The biases [d_ff] are the block's whole ones, None where it has none: the block's own shrink with an active set.
    """

    gate: Q4Rows | None
    up: Q4Rows
    down: Q4Columns
    gate_bias: torch.Tensor | None = None
    up_bias: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of it."""
        return (0 if self.gate is None else self.gate.nbytes) + self.up.nbytes + self.down.nbytes

    @property
    def neuron_nbytes(self) -> int:
        """Bytes of a neuron."""
        rows = 1 if self.gate is None else 2
        return rows * self.up.neuron_nbytes + self.down.neuron_nbytes

    def products(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What gate (None in plain blocks) and up give for ``x`` [T, d], biases included: [T, d_ff]."""
        gate = None if self.gate is None else _plus(multiply(self.gate, x), self.gate_bias)
        return gate, _plus(multiply(self.up, x), self.up_bias)

    def activations(self, function: Activation, x: torch.Tensor) -> torch.Tensor:
        """The activations that the copy gives for ``x`` [T, d], float32 [T, d_ff]."""
        gate, up = self.products(x)
        return function(up) if gate is None else function(gate) * up


@dataclass(frozen=True, eq=False)
class LowBitRest:
    """What neurons left out of active sets contribute, computed from ``copies`` of their blocks (``rest.Rest``)."""

    copies: tuple[BlockCopy, ...]
    function: Activation

    @property
    def neuron_bytes(self) -> tuple[float, ...]:
        return tuple(float(copy.neuron_nbytes) for copy in self.copies)

    def output(self, block: FeedForward, x: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        copy, flat = self.copies[block.layer], x.flatten(0, 1)
        activations = copy.activations(self.function, flat).view(*x.shape[:2], -1)
        return multiply_columns(copy.down, (activations * left_out[:, None]).flatten(0, 1)).view(*x.shape[:2], -1)


@dataclass(frozen=True, eq=False)
class Nf4Rest:
    """The same from ``copies`` on a GPU, in the format that its kernels read (``kernels.gpu.nf4``)."""

    copies: tuple[Nf4Matrices, ...]
    function: Activation

    @property
    def neuron_bytes(self) -> tuple[float, ...]:
        return tuple(float(copy.neuron_bytes) for copy in self.copies)

    def output(self, block: FeedForward, x: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        values, x = self.copies[block.layer].decode(), x.float()
        activations = _product(values.up, values.up_bias, x)
        if values.gate is None:
            activations = self.function(activations)
        else:
            activations = self.function(_product(values.gate, values.gate_bias, x)) * activations
        return (activations * left_out[:, None]) @ values.down


@dataclass(frozen=True, eq=False)
class ModelCopy:
    """Copies of all ``blocks``, parts of arrays in which one layer follows the other.

    Neurons of layer l begin at row ``rows[l]`` and at tile ``tiles[l]``: each layer has tiles of its own.
    """

    blocks: tuple[BlockCopy, ...]
    gate: np.ndarray | None  # uint8 [neurons, records, 40], as ``Q4Rows.records``
    up: np.ndarray  # uint8 [neurons, records, 40]
    down: np.ndarray  # uint8 [tiles, 640 for every 32 outputs], as ``Q4Columns.tiles``
    rows: np.ndarray  # int64 [layers + 1]
    tiles: np.ndarray  # int64 [layers + 1]


_kept: WeakKeyDictionary[PreTrainedModel, ModelCopy] = WeakKeyDictionary()
_kept_on_gpu: WeakKeyDictionary[PreTrainedModel, tuple[Nf4Matrices, ...]] = WeakKeyDictionary()


def copy_of(lm: LoadedModel, report: Report = silent) -> tuple[BlockCopy, ...]:
    """A copy of every block; raises as ``model_copy_of``."""
    return model_copy_of(lm, report).blocks


def low_bit_rest(lm: LoadedModel, report: Report = silent) -> Rest:
    """The ``rest`` of active sets of ``lm``, in the format that the kernels there read; raises as ``model_copy_of``."""
    if lm.device.type == "cuda" and has_nf4_copy(lm):
        return nf4_rest(lm, report)
    return LowBitRest(copy_of(lm, report), activation_function(lm.model))


def has_nf4_copy(lm: LoadedModel) -> bool:
    """Whether the kernels of a GPU can read a copy of ``lm``: its rows are whole blocks, its function is theirs."""
    config = lm.model.config.get_text_config()
    return config.hidden_size % BLOCK == 0 and activation_of(config) is not None


def nf4_rest(lm: LoadedModel, report: Report = silent) -> Nf4Rest:
    """The ``rest`` for the kernels of a GPU, its copies made when first asked for; raises as ``model_copy_of``."""
    from ..kernels.gpu.nf4 import Nf4Matrices

    _need_values(lm)
    if lm.model not in _kept_on_gpu:
        activation = activation_of(lm.model.config.get_text_config())
        assert activation is not None  # see has_nf4_copy
        _kept_on_gpu[lm.model] = tuple(Nf4Matrices.copied_from(block, activation) for block in _telling(lm, report))
    return Nf4Rest(_kept_on_gpu[lm.model], activation_function(lm.model))


def model_copy_of(lm: LoadedModel, report: Report = silent) -> ModelCopy:
    """Copies of all blocks, made when first asked for, telling ``report``.

    Raises:
        UserError: the values of the weights are not at hand.
    """
    _need_values(lm)
    if lm.model not in _kept:
        _kept[lm.model] = _copied(lm, report)
        trim_memory()
    return _kept[lm.model]


def _need_values(lm: LoadedModel) -> None:
    if any(block.is_quantised or block.is_offloaded for block in lm.blocks):
        raise UserError(
            "A 4-bit copy is made from the weights' values, which bitsandbytes models no longer have and models too "
            "large for the GPU keep elsewhere: set rest to skip, or choose another method or precision."
        )


def _telling(lm: LoadedModel, report: Report) -> Iterator[FeedForward]:
    """The blocks, each announced."""
    for block in lm.blocks:
        report(Progress("Making a 4-bit copy", block.layer, len(lm.blocks), "layers"))
        yield block


def _copied(lm: LoadedModel, report: Report) -> ModelCopy:
    from ..model.stored import numbers_of

    ups, gates = [block.up for block in lm.blocks], [block.gate for block in lm.blocks if block.gate is not None]
    rows, tiles = (np.cumsum([0, *counts]) for counts in _sizes(lm.blocks))
    own = [_own_rows(matrices) for matrices in (gates, ups)]
    width = ups[0].linear.in_features
    gate, up = (
        kept or empty_rows(rows[-1], width) if matrices else None
        for kept, matrices in zip(own, (gates, ups), strict=True)
    )
    assert up is not None
    down = empty_tiles(tiles[-1], lm.blocks[0].down.out_features)
    blocks = []
    for block in _telling(lm, report):
        row, tile = slice(*rows[block.layer : block.layer + 2]), slice(*tiles[block.layer : block.layer + 2])
        parts = [whole and Q4Rows(whole.records[row], width) for whole in (gate, up)]
        for part, matrix, kept in zip(parts, (block.gate, block.up), own, strict=True):
            if part is not None and matrix is not None and kept is None:
                write_rows(numbers_of(matrix), part)
        columns = Q4Columns(down[tile], block.d_ff, _output_scales(block, lm))
        _write_down(block, columns)
        gate_bias = None if block.gate is None else block.gate.bias
        blocks.append(BlockCopy(parts[0], cast(Q4Rows, parts[1]), columns, gate_bias, block.up.bias))
    return ModelCopy(tuple(blocks), gate and gate.records, up.records, down, rows, tiles)


def _sizes(blocks: Sequence[FeedForward]) -> tuple[list[int], list[int]]:
    """Neurons and tiles of every block."""
    return [block.d_ff for block in blocks], [tiles_of(block.d_ff) for block in blocks]


def _own_rows(matrices: Sequence[Projection]) -> Q4Rows | None:
    """The model's own, where all its ``matrices`` are in this format and lie side by side."""
    from ..model.stored import StoredLinear, rows_of, side_by_side

    linears = [matrix.linear for matrix in matrices]
    if not linears or not all(isinstance(linear, StoredLinear) and linear.precision == Q4.name for linear in linears):
        return None
    words = side_by_side([rows_of(matrix, Q4.name).codes for matrix in matrices])
    return None if words is None else Q4Rows.of_words(words, linears[0].in_features)


def _write_down(block: FeedForward, copy: Q4Columns) -> None:
    from ..model.stored import neuron_numbers_of

    if block.is_stored:
        write_columns(neuron_numbers_of(block.down, TILE), copy)
    else:
        copy.tiles[:] = encode_columns(block.output_weight(), copy.output_scales).tiles


def _output_scales(block: FeedForward, lm: LoadedModel) -> np.ndarray:
    """What the compiled kernels multiply down's outputs with, at the end."""
    from ..model.stored import neurons_of

    if lm.device.type == "cpu":
        return neurons_of(block.down, lm.precision).output_scales
    return np.ones(block.down.out_features, np.float32)


def _plus(outputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return outputs if bias is None else outputs + bias


def _product(weight: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """float32 [..., rows] of ``weight`` [rows, d] and ``x`` [..., d]."""
    outputs = x @ weight.T
    return outputs if bias is None else outputs + bias
