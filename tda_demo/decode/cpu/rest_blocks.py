"""The rest of active sets on transformers with compiled linears: packed low-bit copies and the loops over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ...kernels.activations import activation_of
from ...kernels.cpu.q4_tiles import gather_columns
from ...kernels.cpu.rest_block import RestBlock
from ...kernels.q4_sizes import TILE
from ...methods.low_bit import BlockCopy, LowBitRest
from ...methods.plan import ActiveSets
from ...methods.rest import Rest
from ...model.feedforward import FeedForward


@dataclass(frozen=True, eq=False)
class PackedRest:
    """``methods.rest.Rest`` for one row of one text and the neurons that were packed: a block of each layer."""

    neuron_bytes: tuple[float, ...]
    blocks: tuple[RestBlock, ...]

    def output(self, block: FeedForward, x: torch.Tensor, left_out: torch.Tensor) -> torch.Tensor:
        return self.blocks[block.layer].output(x.view(-1)).view(x.shape[0], x.shape[1], -1)


def packed_rest(sets: ActiveSets, config: Any) -> Rest | None:
    """What the neurons outside ``sets`` contribute, in compiled loops where these know the model's function."""
    rest, activation = sets.rest, activation_of(config)
    if not isinstance(rest, LowBitRest) or activation is None:
        return rest
    parts = zip(rest.copies, sets.masks, strict=True)
    packed = (_pack(copy, (~mask[0]).nonzero().squeeze(1).numpy(), activation) for copy, mask in parts)
    return PackedRest(rest.neuron_bytes, tuple(packed))


def _pack(copy: BlockCopy, chosen: np.ndarray, activation: int) -> RestBlock:
    like = copy.down.tiles
    down = np.empty((-(-len(chosen) // TILE), *like.shape[1:]), np.uint8)
    gather_columns(like.view(np.uint16), chosen, torch.get_num_threads(), down.view(np.uint16))
    return RestBlock(
        gate=copy.up.records[:0] if copy.gate is None else copy.gate.records[chosen],
        up=copy.up.records[chosen],
        down=down,
        gate_bias=_bias(copy.gate_bias, chosen),
        up_bias=_bias(copy.up_bias, chosen),
        output_scales=copy.down.output_scales,
        activation=activation,
    )


def _bias(bias: torch.Tensor | None, chosen: np.ndarray) -> np.ndarray:
    """float32 [chosen], zeros where there is none."""
    return np.zeros(len(chosen), np.float32) if bias is None else bias.float().numpy()[chosen]
