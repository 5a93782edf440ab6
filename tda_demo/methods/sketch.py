"""Sketch: ours, training-free. A small copy of a block does its work; where that is likely to err, the block does.

A 4-bit copy of gate, up and down (``kernels.sketch``) takes a quarter of the bytes of bfloat16 and is off by a tenth.
Neuron j of a token has the predicted activation a_j, and its part of the output is likely to be off by

    e_j^2 = n_j^2 ((act(g_j + d_g) - act(g_j)) u_j)^2 + n_j^2 (act(g_j) d_u)^2 + (a_j m_j)^2,

where n_j is the norm of its column of down, m_j that of the column's rounding error, and d_g and d_u are what rounding
its rows of gate and up does to an input of the token's length in a random direction. Neurons whose e_j exceeds their
layer's threshold are computed exactly; the others contribute what the copy says. The threshold is one for all tokens, a
quantile of e_j on the calibration passages, so a token may have more or fewer neurons.

Chosen by measurement, on calibration passages of the embedded model in bfloat16 (1,280 scored tokens, KL in nats per
token). At 0.45 of the MLP bytes: neurons left out contribute nothing, an equal number for every token 0.40, one
threshold on |a_j| n_j 0.25; they contribute, threshold on |a_j| n_j 0.051, on e_j 0.036. Three bits for down saved a
sixteenth of the bytes and cost a fifth of the KL.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from ..calibration.quantiles import limits
from ..calibration.sources import ANSWERS, Source
from ..kernels.sketch import (
    SketchedColumns,
    SketchedRows,
    decode,
    decode_columns,
    encode,
    encode_columns,
    multiply,
    multiply_columns,
)
from ..model.configuration import activation_function
from ..model.feedforward import FeedForward
from ..model.projection import Projection
from ..support.errors import UserError
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .settings import Range, setting
from .token import TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.loading import LoadedModel


@dataclass(frozen=True)
class Sketch(Method):
    """A 4-bit copy does the work of all neurons but those where it is likely to err most."""

    name: ClassVar[str] = "sketch"
    dial: ClassVar[Dial] = Dial("keep", dense=1.0, sparsest=0.01)

    keep: float = setting(0.1, "mean share of the neurons that is computed exactly; 1 is exact", Range(0, 1))

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        if any(block.is_quantised or block.is_offloaded for block in lm.blocks):
            raise UserError(
                "The sketch is made from the weights' values, which bitsandbytes models no longer have and models too "
                "large for the GPU keep elsewhere: choose another method."
            )
        policy = _SketchPolicy(lm)
        policy.limits = limits(lm, "sketch-error", policy.strength, self.keep, source, report)
        return policy


class Errors(NamedTuple):
    """What rounding does to a block's neurons, float32 [d_ff] each.

    ``gate`` (zeros in plain blocks) and ``up``: to the product with a vector of length 1 in a random direction, as a
    root mean square; ``down``: to the column, as a norm. ``norms`` are those of down's columns.
    """

    gate: np.ndarray
    up: np.ndarray
    down: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True, eq=False)
class _Copy:
    """A block in four bits; ``gate`` is None in plain blocks."""

    gate: SketchedRows | None
    up: SketchedRows
    down: SketchedColumns
    errors: Errors

    @property
    def nbytes(self) -> int:
        parts = (
            (*self.errors, self.up, self.down) if self.gate is None else (*self.errors, self.gate, self.up, self.down)
        )
        return sum(part.nbytes for part in parts)


_kept: WeakKeyDictionary[PreTrainedModel, list[_Copy]] = WeakKeyDictionary()  # made once for all races on a model


class _SketchPolicy(TokenPolicy):
    """``limits`` float64 [layers] of the likely error."""

    whole = True

    def __init__(self, lm: LoadedModel) -> None:
        self.activation = activation_function(lm.model)
        if lm.model not in _kept:
            _kept[lm.model] = [_copy(block, lm) for block in lm.blocks]
        self.copies = _kept[lm.model]
        self.limits = np.zeros(len(lm.blocks))
        self.extra_bytes = sum(copy.nbytes for copy in self.copies)
        self.note = "the neurons it skips contribute what its 4-bit copy says"

    def strength(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        """The likely error, float32 [T, d_ff]."""
        return self._predicted(block, x)[1]

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return self.strength(block, x, activations) > self.limits[block.layer]

    def rest(self, block: FeedForward, x: torch.Tensor, fired: torch.Tensor) -> torch.Tensor | None:
        if fired.all():
            return None
        predicted, _ = self._predicted(block, x)
        return multiply_columns(self.copies[block.layer].down, torch.where(fired, 0.0, predicted))

    def _predicted(self, block: FeedForward, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The predicted activations and their likely error, float32 [T, d_ff]."""
        copy = self.copies[block.layer]
        gate_error, up_error, down_error, norms = (torch.from_numpy(part).to(x.device) for part in copy.errors)
        length = x.float().norm(dim=1, keepdim=True)
        up = _plus_bias(multiply(copy.up, x), block.up)
        if copy.gate is None or block.gate is None:
            a = self.activation(up)
            by_rows = (self.activation(up + up_error * length) - a).square()
        else:
            gate = _plus_bias(multiply(copy.gate, x), block.gate)
            activated = self.activation(gate)
            a = activated * up
            by_gate = (self.activation(gate + gate_error * length) - activated) * up
            by_rows = by_gate.square() + (activated * up_error * length).square()
        return a, (by_rows * norms**2 + (a * down_error).square()).sqrt()

    @property
    def kernel(self) -> Any:
        from ..kernels.cpu.token.sketch import Sketch as Arrays

        gates = [copy.gate for copy in self.copies if copy.gate is not None]
        if len(gates) < len(self.copies):
            return None
        ups, downs, errors = ([getattr(copy, part) for copy in self.copies] for part in ("up", "down", "errors"))
        gate_error, up_error, down_error, norms = (np.concatenate(part) for part in zip(*errors, strict=True))
        return Arrays(
            gate=np.concatenate([part.codes for part in gates]),
            up=np.concatenate([part.codes for part in ups]),
            down=np.concatenate([part.codes for part in downs]),
            gate_scale=np.concatenate([part.scales for part in gates]),
            up_scale=np.concatenate([part.scales for part in ups]),
            down_scale=np.concatenate([part.scales for part in downs]),
            gate_error=gate_error,
            up_error=up_error,
            down_error=down_error,
            norms=norms,
            limits=self.limits.astype(np.float32),
            starts=np.cumsum([0, *(len(part.scales) for part in ups)])[:-1],
            groups=np.cumsum([0, *(len(part.codes) for part in downs)])[:-1],
        )


def _copy(block: FeedForward, lm: LoadedModel) -> _Copy:
    gate, up = None if block.gate is None else block.gate.weight, block.up.weight
    down = block.output_weight()
    small_gate, small_up = None if gate is None else encode(gate), encode(up)
    small_down = encode_columns(down, _output_scales(block, lm))
    width = np.float32(len(down) ** 0.5)
    errors = Errors(
        gate=np.zeros(block.d_ff, np.float32) if small_gate is None else _error(decode(small_gate), gate, 1) / width,
        up=_error(decode(small_up), up, 1) / width,
        down=_error(decode_columns(small_down), down, 0),
        norms=block.output_norms.cpu().numpy(),
    )
    return _Copy(small_gate, small_up, small_down, errors)


def _plus_bias(outputs: torch.Tensor, projection: Projection) -> torch.Tensor:
    return outputs if projection.bias is None else outputs + projection.bias


def _error(rounded: torch.Tensor, matrix: torch.Tensor | None, dim: int) -> np.ndarray:
    assert matrix is not None
    exact = matrix.detach().float().cpu()
    return (rounded[: exact.shape[0], : exact.shape[1]] - exact).norm(dim=dim).numpy()


def _output_scales(block: FeedForward, lm: LoadedModel) -> np.ndarray:
    """What the compiled kernels multiply down's outputs with, at the end."""
    if lm.device.type == "cpu":
        from ..kernels.formats import encode_by_neuron

        return encode_by_neuron(block.down.weight, lm.precision).output_scales
    return np.ones(block.down.out_features, np.float32)
