"""Compiled linears for a single input row: one call reads one matrix, bound by its bytes.

For decoders that the compiled step does not cover: transformers runs the model and these run its matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import nn

from ..formats import ByNeuron, Rows, encode, encode_by_neuron
from .partition import share
from .rows import LOOP, f32, matvec, weighted_rows

_NO_BIAS = np.empty(0, np.float32)


@dataclass(frozen=True, eq=False)
class RowMajor:
    """A linear whose outputs are the rows of ``rows``; ``bias`` float32 [rows], empty where it has none."""

    rows: Rows
    bias: np.ndarray

    @classmethod
    def of(cls, linear: nn.Linear, precision: str) -> RowMajor:
        return cls(encode(linear.weight, precision), bias_of(linear))

    def take(self, outputs: np.ndarray) -> RowMajor:
        """A copy that computes only ``outputs`` int64 [k]."""
        return RowMajor(self.rows.take(outputs), self.bias[outputs] if self.bias.size else self.bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [columns] -> a new float32 [rows]."""
        out = torch.empty(len(self.rows.codes))
        row_product(
            self.rows.codes, self.rows.scales, self.bias, x.contiguous().numpy(), get_num_threads(), out.numpy()
        )
        return out


@dataclass(frozen=True, eq=False)
class NeuronMajor:
    """A down projection stored by neuron; ``bias`` float32 [d], empty where it has none."""

    neurons: ByNeuron
    bias: np.ndarray

    @classmethod
    def of(cls, linear: nn.Linear, precision: str) -> NeuronMajor:
        return cls(encode_by_neuron(linear.weight, precision), bias_of(linear))

    def take(self, neurons: np.ndarray) -> NeuronMajor:
        """A copy that takes the activations of ``neurons`` int64 [k] only."""
        return NeuronMajor(self.neurons.take(neurons), self.bias)

    def __call__(self, activations: torch.Tensor) -> torch.Tensor:
        """float32 [d_ff] -> a new float32 [d]."""
        stored = self.neurons
        out = torch.empty(len(stored.output_scales))
        neuron_product(
            stored.codes,
            stored.block_scales,
            stored.output_scales,
            self.bias,
            activations.contiguous().numpy(),
            get_num_threads(),
            out.numpy(),
        )
        return out


def bias_of(linear: nn.Linear) -> np.ndarray:
    """Float32 [rows], a view; empty where it has none."""
    return _NO_BIAS if linear.bias is None else linear.bias.detach().float().numpy()


@njit(parallel=True, **LOOP)
def row_product(codes, scales, bias, x, threads, out):
    """out[i] = row i times x, plus bias[i]; codes and scales as ``formats.Rows`` has them, an empty bias is none."""
    rows = codes.shape[0]
    for t in prange(threads):
        first, last = share(rows, t, threads)
        matvec(codes, scales, x, None, first, last, out)
        if bias.shape[0] > 0:
            for i in range(first, last):
                out[i] += bias[i]


@njit(parallel=True, **LOOP)
def neuron_product(codes, block_scales, output_scales, bias, activations, threads, out):
    """out = the sum over neurons of activation times row, scaled, plus bias; stored as ``formats.ByNeuron`` has it.

    Each thread sums a stretch of neurons; the parts are added in order, so equal inputs give equal bits.
    """
    neurons, width = codes.shape[0], out.shape[0]
    partial = np.empty((threads, width), f32)
    for t in prange(threads):
        first, last = share(neurons, t, threads)
        weighted_rows(codes, block_scales, activations, None, first, last, partial[t])
    for j in range(width):
        total = f32(0)
        for t in range(threads):
            total += partial[t, j]
        out[j] = total * output_scales[j]
    if bias.shape[0] > 0:
        for j in range(width):
            out[j] += bias[j]
