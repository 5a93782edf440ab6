"""Token-level rules that leave out input channels of a layer's matrices instead of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.cpu.channel_arrays import by_channel
from ...kernels.formats import format_of
from ...model.activation import activation_function
from ...model.feedforward import FeedForward
from ...support.lazy import nn, torch
from ..plan import See, Use
from ..token import TokenPolicy, Used

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


def matrices(block: FeedForward) -> tuple[nn.Linear, ...]:
    """The matrices of the block's layer: its attention projections as the family orders them, then the block's own."""
    return *block.attention, *block.linears


class ChannelPolicy(TokenPolicy):
    """Of every matrix the input channels are read with ``|x_i| > limits[layer][matrix]``, in the order of ``matrices``.

    The matrices then lie by input channel, so that a channel is one piece of memory; int8 scales belong to outputs and
    are read whatever is left out. nf4 has no kernel: its blocks lie along a row, so that by channel the matrix would
    have to be rounded again.
    """

    def __init__(self, lm: LoadedModel, limits: Sequence[np.ndarray]) -> None:
        self.lm = lm
        self.limits = [each.astype(np.float32) for each in limits]
        self.extra_bytes = sum(each.nbytes for each in self.limits)
        self.activation = activation_function(lm.model)
        self.channel_bytes = [[_channel_bytes(lm, each) for each in matrices(block)] for block in lm.blocks]

    def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return activations.abs() > float(self.limits[block.layer][-1])

    def use(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> Use:
        first = [(x.abs() > float(limit)).sum(dim=1) for limit in self._limits(block)[:-1]]
        return Use(_neurons(block, [*first, self.fire(block, x, activations).sum(dim=1)]))

    def restricted(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        *limits, of_down = self._limits(block)
        outputs = [each.forward(_above(x, limit)) for each, limit in zip(block.input_linears, limits, strict=True)]
        return _above(block.activations_from(self.activation, outputs), of_down)

    def on(self, blocks: Iterable[FeedForward], see: See | None = None) -> ExitStack:
        with ExitStack() as hooks:
            for block in blocks:
                used: dict[int, torch.Tensor] = {}  # they do not run in the order of ``matrices``
                for at, linear in enumerate(matrices(block)):
                    hook = _channels(float(self.limits[block.layer][at]), used, at)
                    hooks.callback(linear.register_forward_pre_hook(hook).remove)
                hooks.callback(block.down.register_forward_pre_hook(self._told(block, used, see)).remove)
            return hooks.pop_all()

    def unread(self, layer: int, used: Sequence[Any]) -> tuple[Any, Any]:
        """Weight bytes left unread in the block of ``layer`` and in its other matrices, where ``used`` channels of each
        of ``matrices`` were read: numbers or tensors alike.
        """
        block = self.lm.blocks[layer]
        spared = [
            (linear.in_features - count) * size
            for linear, count, size in zip(matrices(block), used, self.channel_bytes[layer], strict=True)
        ]
        others = len(block.attention)
        return sum(spared[others:]), sum(spared[:others])

    @property
    def kernel(self) -> Any:
        from ...kernels.cpu.token.channels import Channels

        if not self.has_kernel:
            return None
        arrays = by_channel(self.lm, [matrices(block) for block in self.lm.blocks])
        limits = np.stack(self.limits)[:, list(arrays.places)]
        return Channels(*arrays.codes, limits=limits, counts=np.zeros((len(self.lm.blocks), 6), np.int64))

    @cached_property
    def has_kernel(self) -> bool:  # type: ignore[override]
        return format_of(self.lm.precision).is_by_channel and len({block.d_ff for block in self.lm.blocks}) == 1

    def used(self, kernel: Any, computed: np.ndarray) -> Used:
        channels = self.read_by(kernel, computed)
        unread = [self.unread(layer, counts) for layer, counts in enumerate(channels)]
        neurons = [self.neurons(layer, counts) for layer, counts in enumerate(channels)]
        return Used(neurons, (sum(mlp for mlp, _ in unread), sum(other for _, other in unread)))

    def read_by(self, kernel: Any, computed: np.ndarray) -> list[list[int]]:
        """Channels of each of ``matrices`` of every layer that the last step of ``kernel`` read, which computed
        ``computed`` int64 [layers] neurons' columns of down.
        """
        places = by_channel(self.lm, [matrices(block) for block in self.lm.blocks]).places
        counts = np.column_stack([kernel.counts, computed])
        return [[int(row[places.index(at)]) for at in range(len(self.limits[0]))] for row in counts]

    def _limits(self, block: FeedForward) -> list[float]:
        return [float(each) for each in self.limits[block.layer][len(block.attention) :]]

    def neurons(self, layer: int, used: Sequence[int]) -> int:
        """As many whole neurons as take the weights of ``used`` channels of the layer's ``matrices``, rounded."""
        block = self.lm.blocks[layer]
        own = [torch.tensor([count]) for count in used[len(block.attention) :]]
        return round(float(_neurons(block, own)))

    def _told(self, block: FeedForward, used: dict[int, torch.Tensor], see: See | None) -> Callable[..., None]:
        def tell(*_: object) -> None:
            if see is not None:
                counts = [used[at].double() for at in range(len(used))]
                unread = torch.stack(self.unread(block.layer, counts), dim=1)
                see(block, Use(_neurons(block, counts[len(block.attention) :]), unread))
            used.clear()

        return tell


def _channels(limit: float, used: dict[int, torch.Tensor], at: int) -> Callable[..., torch.Tensor]:
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
