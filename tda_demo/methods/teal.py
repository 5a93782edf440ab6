"""TEAL (arXiv 2408.14690).

The paper's: training-free; per token, every matrix of a layer (q, k, v, o, gate, up, down) leaves out the input
channels whose magnitude does not exceed the matrix's threshold, which comes from a histogram of that input on
calibration text; a block's sparsity is shared out among its matrices greedily, by the error of the block's output.

Our reading: a step of that search raises one matrix's sparsity by a tenth, of all matrices that with the least error
added per weight left out (``channel_shares``); every layer gets the same sparsity, and between two steps of the search
it is linear; fused matrices (phi3, gpt_neox) have one threshold. The prompt runs dense, as under every method here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import numpy as np

from ..calibration.channel_shares import MOST, channel_table
from ..calibration.sources import ANSWERS, Source
from ..kernels.cpu.channel_arrays import ByChannel, by_channel
from ..kernels.formats import format_of
from ..model.configuration import activation_function
from ..model.family import family_of
from ..model.feedforward import FeedForward, find_layers
from ..model.projection import Projection, query_key_value
from ..support.lazy import nn, torch
from ..support.progress import Report, silent
from .base import Dial, Method
from .plan import LayerUse, UseObserver
from .settings import Range, setting
from .token import StepUse, TokenPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..model.loading import LoadedModel

_kept: WeakKeyDictionary[PreTrainedModel, ByChannel] = WeakKeyDictionary()


@dataclass(frozen=True)
class TEAL(Method):
    """Leave out of every matrix, attention's too, the input channels that are small for the token."""

    name: ClassVar[str] = "teal"
    dial: ClassVar[Dial] = Dial("sparsity", dense=0.0, sparsest=MOST)
    leaves_out: ClassVar[str] = "of the MLP weights"

    sparsity: float = setting(
        0.4, "mean share of a layer's weights, attention's included, that is left out; 0 is exact", Range(0, MOST)
    )

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> TokenPolicy:
        if self.sparsity == 0:
            return ChannelPolicy(lm, [np.full(len(block.layer_linears), -np.inf) for block in lm.blocks])
        return ChannelPolicy(lm, channel_table(lm, source, report).limits(self.sparsity))


class ChannelPolicy(TokenPolicy):
    """Reads of every matrix the input channels with ``|x_i| > limits[layer][matrix]``.

    Matrices are in the order of ``FeedForward.layer_linears``. They lie by input channel, so that a channel is one
    piece of memory; int8 scales belong to outputs and are read whatever is left out. nf4 has no kernel: its blocks lie
    along a row, so that by channel the matrix would have to be rounded again.
    """

    def __init__(self, lm: LoadedModel, limits: Sequence[np.ndarray]) -> None:
        self.lm = lm
        self.limits = [layer.astype(np.float32) for layer in limits]
        self.extra_bytes = sum(layer.nbytes for layer in self.limits)
        self.activation = activation_function(lm.model)
        self.channel_bytes = [[_channel_bytes(lm, linear) for linear in block.layer_linears] for block in lm.blocks]

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return activations.abs() > float(self.limits[block.layer][-1])

    def layer_use(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> LayerUse:
        first = [(x.abs() > float(limit)).sum(dim=1) for limit in self._limits(block)[:-1]]
        return LayerUse(_neurons(block, [*first, self.fire(block, x, activations).sum(dim=1)]))

    def sparse_activations(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        *limits, of_down = self._limits(block)
        outputs = [linear.forward(_above(x, limit)) for linear, limit in zip(block.input_linears, limits, strict=True)]
        return _above(block.activations_from(self.activation, outputs), of_down)

    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        with ExitStack() as hooks:
            for block in blocks:
                used: dict[int, torch.Tensor] = {}  # they do not run in the order of ``layer_linears``
                for at, linear in enumerate(block.layer_linears):
                    hook = _channel_hook(float(self.limits[block.layer][at]), used, at)
                    hooks.callback(linear.register_forward_pre_hook(hook).remove)
                hooks.callback(block.down.register_forward_pre_hook(self._use_hook(block, used, see)).remove)
            return hooks.pop_all()

    def unread(self, layer: int, used: Sequence[Any]) -> tuple[Any, Any]:
        """Weight bytes left unread in the block of ``layer`` and in its other matrices, where ``used`` channels of each
        of ``layer_linears`` were read: numbers or tensors alike.
        """
        block = self.lm.blocks[layer]
        spared = [
            (linear.in_features - count) * size
            for linear, count, size in zip(block.layer_linears, used, self.channel_bytes[layer], strict=True)
        ]
        others = len(block.attention)
        return sum(spared[others:]), sum(spared[:others])

    @property
    def kernel(self) -> Any:
        from ..kernels.cpu.token.channels import Channels

        if not self.has_kernel:
            return None
        arrays = self._by_channel()
        limits = np.stack(self.limits)[:, list(arrays.places)]
        return Channels(*arrays.codes, limits=limits, counts=np.zeros((len(self.lm.blocks), 6), np.int64))

    @cached_property
    def has_kernel(self) -> bool:  # type: ignore[override]
        return format_of(self.lm.precision).is_by_channel and len({block.d_ff for block in self.lm.blocks}) == 1

    def _by_channel(self) -> ByChannel:
        """The matrices by channel, copied once for all settings of a model."""
        model = self.lm.model
        if model not in _kept:
            layers = [_projections(model, *pair) for pair in zip(self.lm.blocks, find_layers(model), strict=True)]
            _kept[model] = by_channel(layers, self.lm.blocks[0].layer_linears, self.lm.precision)
        return _kept[model]

    def step_use(self, kernel: Any, computed: np.ndarray) -> StepUse:
        channels = self.channels_read(kernel, computed)
        unread = [self.unread(layer, counts) for layer, counts in enumerate(channels)]
        neurons = [self.neurons(layer, counts) for layer, counts in enumerate(channels)]
        return StepUse(neurons, (sum(mlp for mlp, _ in unread), sum(other for _, other in unread)))

    def channels_read(self, kernel: Any, computed: np.ndarray) -> list[list[int]]:
        """Channels of each of ``layer_linears`` of every layer that the last step of ``kernel`` read, which computed
        ``computed`` int64 [layers] neurons' columns of down.
        """
        places = self._by_channel().places
        counts = np.column_stack([kernel.counts, computed])
        return [[int(row[places.index(at)]) for at in range(len(self.limits[0]))] for row in counts]

    def _limits(self, block: FeedForward) -> list[float]:
        return [float(limit) for limit in self.limits[block.layer][len(block.attention) :]]

    def neurons(self, layer: int, used: Sequence[int]) -> int:
        """As many whole neurons as take the weights of ``used`` channels of the layer's ``layer_linears``, rounded."""
        block = self.lm.blocks[layer]
        of_block = [torch.tensor([count]) for count in used[len(block.attention) :]]
        return round(float(_neurons(block, of_block)))

    def _use_hook(
        self, block: FeedForward, used: dict[int, torch.Tensor], see: UseObserver | None
    ) -> Callable[..., None]:
        def hook(*_: object) -> None:
            if see is not None:
                counts = [used[at].double() for at in range(len(used))]
                unread = torch.stack(self.unread(block.layer, counts), dim=1)
                see(block, LayerUse(_neurons(block, counts[len(block.attention) :]), unread))
            used.clear()

        return hook


def _projections(model: PreTrainedModel, block: FeedForward, layer: nn.Module) -> list[Projection]:
    """q, k, v, o, gate, up and down of a decoder that the compiled step knows, the only one with this kernel."""
    attention: Any = layer.get_submodule("self_attn")
    layout = family_of(model).decoder
    assert layout is not None and block.gate is not None
    qkv = query_key_value(layout, attention, model.config)
    return [*qkv, Projection.whole(attention.o_proj), block.gate, block.up, Projection.whole(block.down)]


def _channel_hook(limit: float, used: dict[int, torch.Tensor], at: int) -> Callable[..., torch.Tensor]:
    def hook(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        chosen = inputs[0].abs() > limit
        used[at] = chosen.reshape(-1, chosen.shape[-1]).sum(dim=1)
        return inputs[0] * chosen

    return hook


def _above(x: torch.Tensor, limit: float) -> torch.Tensor:
    return x * (x.abs() > limit)


def _neurons(block: FeedForward, used: Sequence[torch.Tensor]) -> torch.Tensor:
    """How many neurons take as many weights as ``used`` channels [T] of each of the block's matrices: float64 [T]."""
    counts = torch.stack([count.double() for count in used], dim=1)
    outputs = torch.tensor([linear.out_features for linear in block.linears]).to(counts)
    inputs = torch.tensor([linear.in_features for linear in block.linears]).to(counts)
    return counts @ outputs / (inputs @ outputs) * block.d_ff


def _channel_bytes(lm: LoadedModel, linear: nn.Linear) -> float:
    if lm.device.type != "cpu":
        return linear.weight.nbytes / linear.in_features
    return format_of(lm.precision).column_bytes(linear.out_features)
