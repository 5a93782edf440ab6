"""Packed copies of active neurons for the compiled CPU step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..kernels import cpu
from ..kernels.formats import has_scales
from ..kernels.threads import cores
from ..methods.base import ActiveSets
from .cpu_layout import Layout

_MATRICES = ("gate", "up", "down")
_VECTORS = ("gate_scale", "up_scale", "down_scale", "gate_bias", "up_bias")


@dataclass(frozen=True, eq=False)
class PackedNeurons:
    """``neurons``, whose matrices lie in ``pages``: None where they are the model's own, all of them being active."""

    neurons: cpu.Neurons
    pages: tuple[np.ndarray, ...] | None


class Packer:
    """Packs active sets of one model.

    Memory that a packed set no longer uses serves the next one: the first touch of a new page takes longer than the
    copy into it. At most one set's memory is kept.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._spare: tuple[np.ndarray, ...] | None = None

    def pack(self, active: ActiveSets) -> PackedNeurons:
        neurons = self.layout.neurons
        if not any(active.sparsity()):
            return PackedNeurons(neurons, None)
        chosen = np.concatenate(
            [indices.numpy() + start for indices, start in zip(active.indices, neurons.first, strict=False)]
        )
        pages = self._pages(len(chosen))
        matrices = {name: page[: len(chosen)] for name, page in zip(_MATRICES, pages, strict=True)}
        threads = torch.get_num_threads()
        with cores(threads):
            for name, copy in matrices.items():
                cpu.gather(getattr(neurons, name), chosen, threads, copy)
        vectors = {name: getattr(neurons, name)[chosen] for name in _VECTORS}
        first = np.concatenate([[0], np.cumsum(active.counts())])
        return PackedNeurons(cpu.Neurons(**matrices, **vectors, first=first), pages)

    def take_back(self, packed: PackedNeurons) -> None:
        """For when nothing reads ``packed`` any more."""
        self._spare = packed.pages or self._spare

    def _pages(self, neurons: int) -> tuple[np.ndarray, ...]:
        spare, self._spare = self._spare, None
        if spare is not None and len(spare[0]) >= neurons:
            return spare
        like = self.layout.neurons.gate
        return tuple(np.empty((neurons, like.shape[1]), like.dtype) for _ in _MATRICES)


def neuron_bytes(neurons: cpu.Neurons) -> int:
    """What a step reads of them; scales and biases only where the format and the model have them."""
    codes = sum(getattr(neurons, name).nbytes for name in _MATRICES)
    scales = neurons.gate_scale.nbytes + neurons.up_scale.nbytes if has_scales(neurons.gate) else 0
    return (
        codes
        + scales
        + neurons.down_scale.nbytes
        + sum(bias.nbytes for bias in (neurons.gate_bias, neurons.up_bias) if bias.any())
    )
