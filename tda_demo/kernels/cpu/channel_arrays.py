"""A model's matrices by input channel, for the compiled kernel of ``channels``: copies, made once for all settings."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ...model.attention import query_key_value
from ...model.family import family_of
from ...model.feedforward import FeedForward, find_layers
from ...model.projection import Projection
from ...support.lazy import nn, torch
from ..formats import encode_by_neuron

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


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
    layout = family_of(lm.model).decoder
    assert layout is not None and block.gate is not None  # the kernel runs in the compiled step alone
    qkv = query_key_value(layout, attention, lm.model.config)
    projections = [*qkv, Projection.whole(attention.o_proj), block.gate, block.up, Projection.whole(block.down)]
    return [(projection.linear, projection.weight) for projection in projections]
