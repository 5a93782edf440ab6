"""Sketch: ours, training-free. A small copy of a block does its work; where that is likely to err, the block does.

A 4-bit copy of gate, up and down (``low_bit``) takes a third of the bytes of bfloat16 and is off by a fifteenth.
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
from ..kernels.q4 import decode, decode_columns, multiply_columns
from ..model.configuration import activation_function
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .low_bit import BlockCopy, model_copy_of
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

    @property
    def has_rest(self) -> bool:
        return True

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        policy = _SketchPolicy(lm)
        policy.limits = limits(lm, "sketch-q4", policy.strength, self.keep, source, report)
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

    @property
    def nbytes(self) -> int:
        """Bytes a step reads of them."""
        return sum(part.nbytes for part in self)


_kept: WeakKeyDictionary[PreTrainedModel, list[Errors]] = WeakKeyDictionary()  # made once for all races on a model


class _SketchPolicy(TokenPolicy):
    """``limits`` float64 [layers] of the likely error."""

    whole = True

    def __init__(self, lm: LoadedModel) -> None:
        self.activation = activation_function(lm.model)
        self.whole_copy = model_copy_of(lm)
        self.copies = self.whole_copy.blocks
        if lm.model not in _kept:
            _kept[lm.model] = [_errors(*pair) for pair in zip(lm.blocks, self.copies, strict=True)]
        self.errors = _kept[lm.model]
        self.limits = np.zeros(len(lm.blocks))
        self.extra_bytes = sum(part.nbytes for part in (*self.copies, *self.errors))
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
        errors = self.errors[block.layer]
        gate_error, up_error, down_error, norms = (torch.from_numpy(part).to(x.device) for part in errors)
        length = x.float().norm(dim=1, keepdim=True)
        gate, up = self.copies[block.layer].products(x)
        if gate is None:
            a = self.activation(up)
            by_rows = (self.activation(up + up_error * length) - a).square()
        else:
            activated = self.activation(gate)
            a = activated * up
            by_gate = (self.activation(gate + gate_error * length) - activated) * up
            by_rows = by_gate.square() + (activated * up_error * length).square()
        return a, (by_rows * norms**2 + (a * down_error).square()).sqrt()

    @property
    def kernel(self) -> Any:
        from ..kernels.cpu.token.sketch import Sketch as Arrays

        copy = self.whole_copy
        if copy.gate is None:
            return None
        gate_error, up_error, down_error, norms = (np.concatenate(part) for part in zip(*self.errors, strict=True))
        return Arrays(
            gate=copy.gate,
            up=copy.up,
            down=copy.down,
            gate_error=gate_error,
            up_error=up_error,
            down_error=down_error,
            norms=norms,
            limits=self.limits.astype(np.float32),
            starts=copy.rows,
            tiles=copy.tiles,
        )


def _errors(block: FeedForward, copy: BlockCopy) -> Errors:
    down = block.output_weight()
    width = np.float32(len(down) ** 0.5)
    return Errors(
        gate=np.zeros(block.d_ff, np.float32)
        if copy.gate is None or block.gate is None
        else _error(decode(copy.gate), block.gate.weight, 1) / width,
        up=_error(decode(copy.up), block.up.weight, 1) / width,
        down=_error(decode_columns(copy.down), down, 0),
        norms=block.output_norms.cpu().numpy(),
    )


def _error(rounded: torch.Tensor, matrix: torch.Tensor, dim: int) -> np.ndarray:
    return (rounded - matrix.detach().float().cpu()).norm(dim=dim).numpy()
