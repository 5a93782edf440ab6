"""Compiled linears: one call reads one matrix, bound by its bytes, or by arithmetic where several rows are multiplied.

For texts that are scored, and for decoders that the compiled step does not cover: transformers runs the model and these
run its matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numba import get_num_threads, njit, prange
from torch import nn

from ..formats import ByNeuron, Rows, encode, encode_by_neuron
from . import cores
from .elementwise import add
from .matmul import neurons_have_matmul, neurons_product, rows_have_matmul, rows_product
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

    @property
    def has_matmul(self) -> bool:
        """Whether ``matmul`` is there for this format and size."""
        return rows_have_matmul(self.rows.codes)

    def matmul(self, x: torch.Tensor) -> torch.Tensor:
        """float32 [T, columns] -> a new float32 [T, rows]."""
        out = rows_product(self.rows.codes, self.rows.scales, x.contiguous().numpy(), get_num_threads())
        return _with_bias(out, self.bias)


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

    @property
    def has_matmul(self) -> bool:
        """Whether ``matmul`` is there for this format and size."""
        return neurons_have_matmul(self.neurons.codes)

    def matmul(self, activations: torch.Tensor) -> torch.Tensor:
        """float32 [T, d_ff] -> a new float32 [T, d]."""
        stored = self.neurons
        out = neurons_product(stored.codes, stored.output_scales, activations.contiguous().numpy(), get_num_threads())
        return _with_bias(out, self.bias)


def compiled(matrix: RowMajor | NeuronMajor, x: torch.Tensor) -> torch.Tensor | None:
    """``matrix`` of ``x`` float32 [..., columns], as [..., rows], on torch's number of threads.

    None where only torch can: of a matrix without ``matmul``, or where gradients are asked for.
    """
    flat = x.reshape(prod(x.shape[:-1]), x.shape[-1])
    if x.requires_grad or (len(flat) != 1 and not matrix.has_matmul):
        return None
    with cores(torch.get_num_threads()):
        out = matrix(flat[0]) if len(flat) == 1 else matrix.matmul(flat)
    return out.view(*x.shape[:-1], out.shape[-1])


def _with_bias(out: np.ndarray, bias: np.ndarray) -> torch.Tensor:
    if bias.size:
        out += bias
    return torch.from_numpy(out)


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
            add(out[first:last], bias[first:last])


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
