"""Active neurons for the compiled CPU step: packed copies, or where they lie."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from ...kernels.cpu import cores
from ...kernels.cpu import step as cpu
from ...kernels.cpu.layer import Neurons
from ...kernels.formats import has_nibbles
from ...methods.plan import ActiveSets
from .layout import Layout

_MATRICES = ("gate", "up", "down")
_VECTORS = ("gate_scale", "up_scale", "down_scale", "gate_bias", "up_bias")


@dataclass(frozen=True, eq=False)
class PackedNeurons:
    """Active neurons side by side, their matrices in ``pages``; None where they are the model's own, all of them."""

    neurons: Neurons
    active: cpu.Active
    pages: tuple[np.ndarray, ...] | None


def in_place(layout: Layout, active: ActiveSets) -> cpu.Active:
    """``active`` as a list of neurons where they lie."""
    return cpu.Active(_layer_bounds(active.indices), _neuron_numbers(layout, active.indices))


def _layer_bounds(order: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(indices) for indices in order])])


def _neuron_numbers(layout: Layout, order: Sequence[torch.Tensor]) -> np.ndarray:
    """The numbers among all layers' neurons, int64 [places], of those that ``order`` names layer by layer."""
    chosen = [indices.numpy() + start for indices, start in zip(order, layout.first, strict=False)]
    return np.concatenate(chosen)


class Packer:
    """Packs active sets of one model.

    Memory that packed sets no longer use serves the next ones: the first touch of a new page takes longer than the
    copy into it. At most two sets' memory is kept, what a method and its rival need.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._spare: deque[tuple[np.ndarray, ...]] = deque(maxlen=2)
        self._records: Callable[[], np.ndarray | None] = lambda: None  # those in the model's own order, while in use

    def pack(self, active: ActiveSets) -> PackedNeurons:
        if not any(active.sparsity()):
            return PackedNeurons(self.layout.neurons, self.layout.everything, None)
        return self.arrange(active.indices)

    def arrange(self, order: Sequence[torch.Tensor]) -> PackedNeurons:
        """Copies of neurons in the order in which ``order`` names each layer's, int64 [k]."""
        neurons, chosen = self.layout.neurons, _neuron_numbers(self.layout, order)
        pages = self._pages(len(chosen))
        matrices = {name: page[: len(chosen)] for name, page in zip(_MATRICES, pages, strict=True)}
        threads = torch.get_num_threads()
        with cores(threads):
            for name, copy in matrices.items():
                cpu.gather(getattr(neurons, name), chosen, threads, copy)
        vectors = {name: getattr(neurons, name)[chosen] for name in _VECTORS}
        return PackedNeurons(Neurons(**matrices, **vectors), cpu.Active(_layer_bounds(order), None), pages)

    def records(self, order: Sequence[torch.Tensor] | None = None) -> Neurons:
        """All neurons as records (``kernels.cpu.scattered``), in the order in which ``order`` names each layer's.

        They are a second copy of the MLP's weights, the same for all arms that use it at one time. What has
        two codes a byte stays as it is: taking them apart takes longer than reading.
        """
        neurons = self.layout.neurons
        if has_nibbles(neurons.gate):
            return self.arrange(order).neurons if order else neurons
        chosen = _neuron_numbers(self.layout, order) if order else slice(None)
        records = None if order else self._records()
        if records is None:
            records = np.stack([getattr(neurons, name)[chosen] for name in _MATRICES], axis=1)
        if order is None:
            self._records = weakref.ref(records)
        nothing = np.empty((len(records), 0), records.dtype)
        vectors = {name: getattr(neurons, name)[chosen] for name in _VECTORS}
        return Neurons(gate=records, up=nothing, down=nothing, **vectors)

    def take_back(self, packed: PackedNeurons) -> None:
        """For when nothing reads ``packed`` any more."""
        if packed.pages is not None:
            self._spare.append(packed.pages)

    def _pages(self, neurons: int) -> tuple[np.ndarray, ...]:
        spare: list[tuple[np.ndarray, ...]] = []
        with suppress(IndexError):  # until there is no more; races may run in parallel, and no two get the same
            while True:
                spare.append(self._spare.pop())
        fitting = [pages for pages in spare if len(pages[0]) >= neurons]
        if fitting:  # else all are let go: a set that needs more takes their place
            best = min(fitting, key=lambda pages: len(pages[0]))
            self._spare.extend(pages for pages in spare if pages is not best)
            return best
        like = self.layout.neurons.gate
        return tuple(np.empty((neurons, like.shape[1]), like.dtype) for _ in _MATRICES)
