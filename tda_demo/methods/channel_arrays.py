"""A model's matrices by input channel, for the compiled kernel of ``channels``: copies, made once for all settings."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..feedforward import FeedForward, find_layers
from ..kernels.formats import encode_by_neuron
from ..later import nn, torch

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True, eq=False)
class ByChannel:
    """``codes`` [layers, pieces, inputs, outputs / pieces] of q, k, v, o, gate and up, as ``kernels.formats.ByNeuron``
    has them; ``places`` says which of the layer's matrices each of them, and down, is or is a part of.
    """

    codes: tuple[np.ndarray, ...]
    places: tuple[int, ...]


_kept: weakref.WeakKeyDictionary[Any, ByChannel] = weakref.WeakKeyDictionary()


def by_channel(lm: LoadedModel, matrices: Sequence[Sequence[nn.Linear]]) -> ByChannel:
    """The copies for ``lm``, a decoder of the compiled step's layout; ``matrices`` are each layer's."""
    if lm.model not in _kept:
        _kept[lm.model] = _read(lm, matrices)
    return _kept[lm.model]


def _read(lm: LoadedModel, matrices: Sequence[Sequence[nn.Linear]]) -> ByChannel:
    layers = [_parts(lm, block, layer) for block, layer in zip(lm.blocks, find_layers(lm.model), strict=True)]
    codes = tuple(
        np.stack([_pieces(encode_by_neuron(weights, lm.precision).codes) for _, weights in part])
        for part in zip(*(parts[:-1] for parts in layers), strict=True)
    )
    owners = [linear for linear, _ in layers[0]]
    return ByChannel(codes, tuple(next(at for at, each in enumerate(matrices[0]) if each is own) for own in owners))


def _pieces(codes: np.ndarray) -> np.ndarray:
    """``codes`` [inputs, outputs] as [pieces, inputs, outputs / pieces]: one a thread, if that leaves no rest."""
    inputs, outputs = codes.shape
    threads = torch.get_num_threads()
    pieces = threads if outputs % threads == 0 else 1
    return np.ascontiguousarray(codes.reshape(inputs, pieces, -1).swapaxes(0, 1))


def _parts(lm: LoadedModel, block: FeedForward, layer: nn.Module) -> list[tuple[nn.Linear, torch.Tensor]]:
    """q, k, v, o, gate, up and down: the linear each is held by, and its weights."""
    attention: Any = layer.get_submodule("self_attn")
    if hasattr(attention, "qkv_proj"):
        config: Any = lm.model.config
        rows = [heads * attention.head_dim for heads in (config.num_attention_heads, *[config.num_key_value_heads] * 2)]
        qkv = [(attention.qkv_proj, part) for part in attention.qkv_proj.weight.split(rows)]
    else:
        qkv = [(each, each.weight) for each in (attention.q_proj, attention.k_proj, attention.v_proj)]
    halves = block.up.weight.chunk(2) if block.fused else [each.weight for each in block.linears[:-1]]
    first = zip([block.up] * 2 if block.fused else block.linears[:-1], halves, strict=True)
    return [*qkv, (attention.o_proj, attention.o_proj.weight), *first, (block.down, block.down.weight)]
