"""Memory for the codes of a model's matrices: those that a decode step reads as one array lie side by side in it.

So the step's arrays (``decode.cpu.layout``) are there once the last matrix has been read, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from ...kernels.formats import ByNeuron, Rows, format_of
from ..family import family_of
from ..feedforward import find_blocks, find_layers
from ..projection import linears_of, query_key_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Rooms:
    """Room for every matrix of a ``model``, whose own weights lie on the meta device, in ``precision``."""

    def __init__(self, model: PreTrainedModel, precision: str) -> None:
        self._form = format_of(precision)
        self._rows: dict[nn.Linear, Rows] = {}
        self._neurons: dict[nn.Linear, ByNeuron] = {}
        family, layers, blocks = family_of(model).decoder, find_layers(model), find_blocks(model)
        assert family is not None  # others are not held as codes
        attention: list[Any] = [layer.self_attn for layer in layers]
        parts = [part for each in attention for part in query_key_value(family, each, model.config)]
        self._share(linears_of(parts))
        self._share([each.o_proj for each in attention])
        for projections in ([block.gate for block in blocks], [block.up for block in blocks]):
            self._share([part.linear for part in projections if part is not None and part.is_whole])
        self._share_neurons([block.down for block in blocks])

    def of(self, linear: nn.Linear) -> Rows:
        """For a matrix by row."""
        return self._rows.pop(linear, None) or self._form.empty(linear.out_features, linear.in_features)

    def of_down(self, down: nn.Linear) -> ByNeuron:
        """For a down projection by neuron."""
        return self._neurons.pop(down)

    def _share(self, linears: Sequence[nn.Linear]) -> None:
        if not linears:
            return
        whole = self._form.empty(sum(linear.out_features for linear in linears), linears[0].in_features)
        begin = 0
        for linear in linears:
            part = slice(begin, begin + linear.out_features)
            self._rows[linear] = Rows(whole.codes[part], whole.scales[part])
            begin = part.stop

    def _share_neurons(self, downs: Sequence[nn.Linear]) -> None:
        width = downs[0].out_features
        whole = self._form.empty_by_neuron(width, sum(down.in_features for down in downs))
        begin = 0
        for down in downs:
            part = whole.stretch(slice(begin, begin + down.in_features))
            self._neurons[down] = ByNeuron(part.codes, part.block_scales, part.output_scales.copy())
            begin += down.in_features
