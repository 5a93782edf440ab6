"""Active neurons for the compiled CPU step: packed copies, or where they lie; and low-bit copies of all others."""

from __future__ import annotations

import dataclasses
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
from ...kernels.cpu.q4_tiles import gather_columns
from ...kernels.cpu.rest import Rest
from ...kernels.formats import has_nibbles
from ...kernels.q4_sizes import TILE
from ...methods.low_bit import BlockCopy, LowBitRest
from ...methods.plan import ActiveSets
from .layout import Layout

_MATRICES = ("gate", "up", "down")
_VECTORS = ("gate_scale", "up_scale", "down_scale", "gate_bias", "up_bias")


@dataclass(frozen=True, eq=False)
class PackedNeurons:
    """Active neurons side by side, their matrices in ``pages``; None where they are the model's own, all of them.

    ``rest``, in ``rest_pages``, is of those left out, where they contribute.
    """

    neurons: Neurons
    active: cpu.Active
    pages: tuple[np.ndarray, ...] | None
    rest: Rest | None = None
    rest_pages: tuple[np.ndarray, ...] | None = None


def in_place(layout: Layout, active: ActiveSets) -> cpu.Active:
    """``active`` as a list of neurons where they lie."""
    return cpu.Active(_layer_bounds(active.indices), _neuron_numbers(layout, active.indices))


def _layer_bounds(order: Sequence[torch.Tensor]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(indices) for indices in order])])


def _neuron_numbers(layout: Layout, order: Sequence[torch.Tensor]) -> np.ndarray:
    """The numbers among all layers' neurons, int64 [places], of those that ``order`` names layer by layer."""
    chosen = [indices.numpy() + start for indices, start in zip(order, layout.first, strict=False)]
    return np.concatenate(chosen)


class _Memory:
    """Memory of packed copies, arrays as long as there are places for neurons or longer.

    What is no longer used serves the next copies: the first touch of a new page takes longer than the copy into it. At
    most two sets' is kept, what a method and its rival need.
    """

    def __init__(self) -> None:
        self._spare: deque[tuple[np.ndarray, ...]] = deque(maxlen=2)

    def take(self, places: int, make: Callable[[], tuple[np.ndarray, ...]]) -> tuple[np.ndarray, ...]:
        """Some that nothing uses, whose first array has at least so many ``places``; else what ``make`` gives."""
        spare: list[tuple[np.ndarray, ...]] = []
        with suppress(IndexError):  # until there is no more; races may run in parallel, and no two get the same
            while True:
                spare.append(self._spare.pop())
        fitting = [pages for pages in spare if len(pages[0]) >= places]
        if not fitting:  # all are let go: a set that needs more takes their place
            return make()
        best = min(fitting, key=lambda pages: len(pages[0]))
        self._spare.extend(pages for pages in spare if pages is not best)
        return best

    def give_back(self, pages: tuple[np.ndarray, ...] | None) -> None:
        if pages is not None:
            self._spare.append(pages)


class Packer:
    """Packs active sets of one model, and what the others contribute, into memory that earlier ones gave back."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._memory, self._rest_memory = _Memory(), _Memory()
        self._packed: weakref.WeakKeyDictionary[ActiveSets, weakref.ref[PackedNeurons]] = weakref.WeakKeyDictionary()
        self._records: Callable[[], np.ndarray | None] = lambda: None  # those in the model's own order, while in use

    def pack(self, active: ActiveSets) -> PackedNeurons:
        """Copies for ``active``, the same ones for all that use them at one time; their memory serves others after."""
        if not any(active.sparsity()):
            return PackedNeurons(self.layout.neurons, self.layout.everything, None)
        packed = self._packed[active]() if active in self._packed else None
        if packed is None:
            packed = self._pack(active)
            self._packed[active] = weakref.ref(packed)
            weakref.finalize(packed, self._take_back, packed.pages, packed.rest_pages).atexit = False
        return packed

    def _take_back(self, pages: tuple[np.ndarray, ...] | None, rest_pages: tuple[np.ndarray, ...] | None) -> None:
        self._memory.give_back(pages)
        self._rest_memory.give_back(rest_pages)

    def _pack(self, active: ActiveSets) -> PackedNeurons:
        packed = self.arrange(active.indices)
        rest = active.rest
        if not isinstance(rest, LowBitRest):
            return packed
        left_out = [(~mask.squeeze(0)).nonzero().squeeze(1) for mask in active.masks]
        copies, pages = self.pack_rest(rest.copies, left_out)
        return dataclasses.replace(packed, rest=copies, rest_pages=pages)

    def arrange(self, order: Sequence[torch.Tensor]) -> PackedNeurons:
        """Copies of neurons in the order in which ``order`` names each layer's, int64 [k]."""
        neurons, chosen = self.layout.neurons, _neuron_numbers(self.layout, order)
        whole = [getattr(neurons, name) for name in _MATRICES]
        pages = self._memory.take(
            len(chosen), lambda: tuple(np.empty((len(chosen), like.shape[1]), like.dtype) for like in whole)
        )
        matrices = {name: page[: len(chosen)] for name, page in zip(_MATRICES, pages, strict=True)}
        threads = torch.get_num_threads()
        with cores(threads):
            for name, copy in matrices.items():
                cpu.gather(getattr(neurons, name), chosen, threads, copy)
        vectors = {name: getattr(neurons, name)[chosen] for name in _VECTORS}
        return PackedNeurons(Neurons(**matrices, **vectors), cpu.Active(_layer_bounds(order), None), pages)

    def pack_rest(
        self, copies: Sequence[BlockCopy], left_out: Sequence[torch.Tensor]
    ) -> tuple[Rest, tuple[np.ndarray, ...]]:
        """Low-bit copies, ``copies`` being those of all blocks, of the neurons ``left_out`` int64 [k] of each layer.

        The second are the pages that hold them.
        """
        counts = np.array([len(indices) for indices in left_out])
        tiles = np.cumsum([0, *(-(-counts // TILE))])
        places = int(tiles[-1]) * TILE
        like, like_down = copies[0].up.records, copies[0].down.tiles
        pages = self._rest_memory.take(
            places,
            lambda: (
                *(np.empty((places, *like.shape[1:]), np.uint8) for _ in range(2)),
                np.empty((tiles[-1], *like_down.shape[1:]), np.uint8),
            ),
        )
        gate, up, down = (page[:length] for page, length in zip(pages, (places, places, tiles[-1]), strict=True))
        gate_bias, up_bias = (np.zeros(places, np.float32) for _ in range(2))
        neurons, threads = self.layout.neurons, torch.get_num_threads()
        with cores(threads):
            for layer, (copy, indices) in enumerate(zip(copies, left_out, strict=True)):
                chosen, tile = indices.numpy(), tiles[layer]
                here = slice(tile * TILE, tile * TILE + len(chosen))
                assert copy.gate is not None  # the layout's blocks are GLU
                for rows, target in ((copy.gate, gate), (copy.up, up)):
                    cpu.gather(_flat(rows.records), chosen, threads, _flat(target[here]))
                columns = copy.down.tiles.view(np.uint16), down[tile : tiles[layer + 1]].view(np.uint16)
                gather_columns(columns[0], chosen, threads, columns[1])
                numbers = chosen + self.layout.first[layer]
                gate_bias[here], up_bias[here] = neurons.gate_bias[numbers], neurons.up_bias[numbers]
        return Rest(gate, up, down, gate_bias, up_bias, tiles[:-1], counts), pages

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


def _flat(records: np.ndarray) -> np.ndarray:
    """[rows, bytes] of [rows, records, bytes]."""
    return records.reshape(len(records), records.shape[1] * records.shape[2])
