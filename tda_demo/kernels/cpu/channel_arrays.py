"""Matrices by input channel, for the compiled kernel of ``token.channels``: copies of a model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...model.projection import Projection
from ...support.lazy import nn, torch
from ..formats import encode_by_neuron


@dataclass(frozen=True, eq=False)
class ByChannel:
    """``codes`` [layers, pieces, inputs, outputs / pieces] of q, k, v, o, gate and up, as ``kernels.formats.ByNeuron``
    has them; ``places`` says which of the layer's matrices each of them, and down, is or is a part of.
    """

    codes: tuple[np.ndarray, ...]
    places: tuple[int, ...]


def by_channel(layers: Sequence[Sequence[Projection]], linears: Sequence[nn.Linear], precision: str) -> ByChannel:
    """The copies of q, k, v, o, gate and up of ``layers``, each of which ends with down; ``linears`` are those of the
    first layer, in the order that ``places`` counts.
    """
    codes = tuple(
        np.stack([_pieces(encode_by_neuron(projection.weight, precision).codes) for projection in same])
        for same in zip(*(layer[:-1] for layer in layers), strict=True)
    )
    return ByChannel(codes, tuple(_place(projection.linear, linears) for projection in layers[0]))


def _place(linear: nn.Linear, linears: Sequence[nn.Linear]) -> int:
    return next(place for place, other in enumerate(linears) if other is linear)


def _pieces(codes: np.ndarray) -> np.ndarray:
    """``codes`` [inputs, outputs] as [pieces, inputs, outputs / pieces]: one a thread, if that leaves no rest."""
    inputs, outputs = codes.shape
    threads = torch.get_num_threads()
    pieces = threads if outputs % threads == 0 else 1
    return np.ascontiguousarray(codes.reshape(inputs, pieces, -1).swapaxes(0, 1))
