"""What neurons left out of a block contribute, from packed low-bit copies (``kernels.q4``): one call a block.

For decoders that the compiled step does not cover: transformers runs the model, ``linear`` its matrices and this what
``rest`` computes within the step, of GLU and plain blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import get_num_threads, njit, prange

from ..q4_sizes import GROUP, RECORD, TILE
from .elementwise import activate_all, gate_all
from .partition import share
from .q4_columns import add_columns
from .q4_rows import matvec, quantise
from .q4_tiles import chunks_of
from .rows import LOOP, f32


class RestBlock(NamedTuple):
    """Copies of the neurons that a block leaves out, side by side; ``gate`` is empty in plain blocks.

    ``activation`` is one of ``kernels.activations``.
    """

    gate: np.ndarray  # uint8 [neurons or 0, records, 40]
    up: np.ndarray  # uint8 [neurons, records, 40]
    down: np.ndarray  # uint8 [neurons / 32, 640 for every 32 outputs]
    gate_bias: np.ndarray  # float32 [neurons]
    up_bias: np.ndarray  # float32 [neurons]
    output_scales: np.ndarray  # float32 [outputs]
    activation: int

    def output(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [columns] -> a new float32 [outputs]."""
        out = torch.empty(len(self.output_scales))
        rest_product(self, x.contiguous().numpy(), get_num_threads(), out.numpy())
        return out


@njit(parallel=True, **LOOP)
def rest_product(block, x, threads, out):
    """out = what the neurons of ``block`` contribute for x.

    Each thread takes some tiles of neurons; the parts are added in order, so equal inputs give equal bits.
    """
    neurons, records = block.up.shape[0], block.up.shape[1]
    tiles, chunks = block.down.shape[0], chunks_of(block.down)
    codes, factors = np.empty(records * RECORD, np.int8), np.empty((records, 4), f32)
    quantise(x, codes, factors)
    partial = np.zeros((threads, chunks * GROUP), f32)
    for t in prange(threads):
        first, last = share(tiles, t, threads)
        start = first * TILE
        end = min(last * TILE, neurons)
        count = end - start
        if count > 0:
            a = np.zeros((last - first) * TILE, f32)
            if block.gate.shape[0] > 0:
                linear = np.empty(count, f32)
                matvec(block.gate, codes, factors, start, end, a)
                matvec(block.up, codes, factors, start, end, linear)
                gate_all(a[:count], block.gate_bias[start:end], linear, block.up_bias[start:end], block.activation)
            else:
                matvec(block.up, codes, factors, start, end, a)
                activate_all(a[:count], block.up_bias[start:end], block.activation)
            add_columns(block.down, first, last, a, partial[t])
    for j in range(out.shape[0]):
        total = f32(0)
        for t in range(threads):
            total += partial[t, j]
        out[j] = total * block.output_scales[j]
