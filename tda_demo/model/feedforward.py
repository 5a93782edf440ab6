"""One view of a feed-forward (MLP) block, whatever the model family calls its parts.

A neuron is one row of ``up`` (and of ``gate``) plus the matching column of ``down``. Two layouts exist:

* GLU: ``a = act(x Wg^T) * (x Wu^T)``, ``y = a Wd^T``, gate and up in a matrix each (llama) or both in one (phi3);
* plain: ``a = act(x W1^T + b1)``, ``y = a W2^T + b2``, W1 being ``up`` (opt, gpt_neox).

Where the matrices lie is said by the family's record, ``model.family``; nothing outside this view asks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ..support.lazy import nn, torch
from .family import BlockLayout, family_of
from .projection import Projection, linears_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .configuration import Activation


@dataclass(frozen=True, eq=False)
class FeedForward:
    """The three projections of block ``layer``.

    ``gate`` is None for plain blocks; where one matrix holds both, ``gate`` and ``up`` are its two halves.
    ``down.weight`` is [d_model, d_ff]; its input is the activation vector ``a`` [..., d_ff]. ``d_ff`` is the full
    width, also while the matrices hold fewer neurons. ``attention`` holds the layer's other matrices, its attention
    projections.
    """

    layer: int
    gate: Projection | None
    up: Projection
    down: nn.Linear
    d_ff: int
    attention: tuple[nn.Linear, ...] = ()

    @property
    def is_glu(self) -> bool:
        return self.gate is not None

    @property
    def input_linears(self) -> tuple[nn.Linear, ...]:
        """The matrices that read the block's input, one or two: they hold gate and up."""
        return linears_of([projection for projection in (self.gate, self.up) if projection is not None])

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """The block's matrices in the order they are read."""
        return *self.input_linears, self.down

    def rows_of(self, linear: nn.Linear, indices: torch.Tensor) -> torch.Tensor:
        """The rows of ``linear``, one of ``input_linears``, that belong to the neurons ``indices`` int64 [k].

        int64 [k], or [2k] where the matrix holds gate and up: the rows of gate first.
        """
        held = [projection for projection in (self.gate, self.up) if projection and projection.linear is linear]
        return torch.cat([indices + projection.rows.start for projection in held])

    def activation_input(self, x: torch.Tensor) -> torch.Tensor:
        """What the activation function is applied to, [..., d_ff] for ``x`` [..., d]; hooks do not see this."""
        return (self.gate or self.up)(x)

    def activations(self, function: Activation, x: torch.Tensor) -> torch.Tensor:
        """``a`` [..., d_ff] for the block's input ``x`` [..., d]; hooks on the modules do not see this."""
        return self.activations_from(function, [linear.forward(x) for linear in self.input_linears])

    def activations_from(self, function: Activation, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """``a`` [..., d_ff] for the ``outputs`` of ``input_linears``."""
        by_linear = dict(zip(self.input_linears, outputs, strict=True))
        up = by_linear[self.up.linear][..., self.up.rows]
        if self.gate is None:
            return function(up)
        return function(by_linear[self.gate.linear][..., self.gate.rows]) * up

    @cached_property
    def output_norms(self) -> torch.Tensor:
        """``||Wd[:, j]||_2`` of every neuron: float32 [d_ff]."""
        return self.output_weight().norm(dim=0)

    @cached_property
    def input_norms(self) -> torch.Tensor:
        """``||Wg[j]||_2 ||Wu[j]||_2`` of every neuron, ``||W1[j]||_2`` in plain blocks: float32 [d_ff]."""
        rows = torch.cat([_values(linear).norm(dim=1) for linear in self.input_linears])
        return rows.view(-1, self.d_ff).prod(dim=0)  # a fused matrix has both norms of a neuron too, d_ff apart

    def output_weight(self) -> torch.Tensor:
        """The values of ``down.weight``, float32 [d_model, d_ff], however bitsandbytes may hold them."""
        return _values(self.down)

    def output_columns(self, neurons: torch.Tensor) -> torch.Tensor:
        """Those of ``down.weight`` that the ``neurons`` int64 [k] have, float32 [d_model, k], where ``is_stored``."""
        down: Any = self.down
        return down.columns(neurons)

    def outputs_of(self, activations: torch.Tensor) -> torch.Tensor:
        """``activations`` [..., d_ff] times the down projection, without its bias: float32 [..., d_model]."""
        if _is_decoded(self.down):
            down: Any = self.down
            return down.product(activations.float())
        return activations.float() @ self.output_weight().T

    @property
    def layer_linears(self) -> tuple[nn.Linear, ...]:
        """The matrices of the block's layer: its attention projections as the family orders them, then the block's."""
        return *self.attention, *self.linears

    @property
    def is_stored(self) -> bool:
        """Whether its matrices are codes of the compiled kernels and nothing else (``stored``)."""
        return _is_decoded(self.down)

    @property
    def is_quantised(self) -> bool:
        """Whether its matrices are bitsandbytes', whose rows and columns cannot be taken out as they are."""
        return not all(_is_decoded(linear) or linear.weight.is_floating_point() for linear in self.linears)

    @property
    def is_offloaded(self) -> bool:
        """Whether accelerate keeps its matrices elsewhere and puts them in for each call, in place of any others."""
        return any(not _is_decoded(linear) and linear.weight.is_meta for linear in self.linears)

    @property
    def can_be_packed(self) -> bool:
        """Whether copies of some neurons' rows and columns can take the place of its matrices."""
        return not (self.is_quantised or self.is_offloaded)


def _is_decoded(linear: nn.Linear) -> bool:
    """Whether its weight is decoded from codes when asked for, which is not done only to see its type."""
    return "weight" not in linear._parameters


def _values(linear: nn.Linear) -> torch.Tensor:
    """The values of ``linear.weight``, float32 [out, in], however bitsandbytes or accelerate may hold them."""
    weight: Any = linear.weight
    if weight.is_meta:
        (hook,) = transfer_hooks(linear)
        return hook.weights_map["weight"].to(hook.execution_device).float()
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state).float()
    if weight.dtype == torch.int8:  # with a float32 largest magnitude a row, which the first forward pass moves
        holder: Any = linear
        largest = weight.SCB if getattr(weight, "SCB", None) is not None else holder.state.SCB
        return weight.data.float() * (largest / 127)[:, None]
    return weight.detach().float()


def transfer_hooks(module: nn.Module) -> Iterator[Any]:
    """accelerate's hooks of ``module`` that move what it computes with."""
    hook: Any = getattr(module, "_hf_hook", None)
    chain = getattr(hook, "hooks", (hook,))
    return (link for link in chain if hasattr(link, "weights_map"))


def find_blocks(model: PreTrainedModel) -> tuple[FeedForward, ...]:
    """The feed-forward blocks of ``model``, first layer first.

    Raises:
        UserError: its family is not supported.
    """
    layout = family_of(model).block
    return tuple(_block(index, layer, layout) for index, layer in enumerate(find_layers(model)))


def find_layers(model: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The decoder layers that ``find_blocks`` gives the blocks of; raises what it raises."""
    return tuple(cast(nn.ModuleList, model.get_submodule(family_of(model).layers)))


def _block(index: int, layer: nn.Module, layout: BlockLayout) -> FeedForward:
    up, down = (cast(nn.Linear, layer.get_submodule(path)) for path in (layout.up, layout.down))
    d_ff = down.in_features
    if layout.gate == layout.up:
        gate_projection, up_projection = Projection.parts(up, [d_ff, d_ff])
    else:
        gate = None if layout.gate is None else cast(nn.Linear, layer.get_submodule(layout.gate))
        gate_projection = None if gate is None else Projection.whole(gate)
        up_projection = Projection.whole(up)
    block = FeedForward(index, gate_projection, up_projection, down, d_ff)
    linears = [module for module in layer.modules() if isinstance(module, nn.Linear)]
    return dataclasses.replace(block, attention=tuple(linear for linear in linears if linear not in block.linears))
