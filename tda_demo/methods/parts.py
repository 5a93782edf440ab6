"""Parts of a block's computation that token-level methods look at, whatever the family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..feedforward import FeedForward
from ..kernels.activations import activation_field
from ..later import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..kernels.formats import Rows

Activation = Callable[["torch.Tensor"], "torch.Tensor"]


def activation_name(model: PreTrainedModel) -> str:
    """What the model's configuration calls the function between a block's matrices, e.g. "silu"."""
    config: Any = model.config.get_text_config()
    return getattr(config, activation_field(config))


def activation_function(model: PreTrainedModel) -> Activation:
    """The function between a block's matrices."""
    from transformers.activations import ACT2FN

    return ACT2FN[activation_name(model)]


def gate_of(block: FeedForward, x: torch.Tensor) -> torch.Tensor:
    """What goes into the activation function, [T, d_ff] for ``x`` [T, d]; hooks on the modules do not see this."""
    first = block.linears[0].forward(x)
    return first[..., : block.d_ff]


def activations_of(block: FeedForward, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """The block's activations, [T, d_ff] for ``x`` [T, d]; hooks on the modules do not see this."""
    first = activation(gate_of(block, x))
    if block.fused:
        return first * block.up.forward(x)[..., block.d_ff :]
    return first if block.gate is None else first * block.up.forward(x)


def first_rows(block: FeedForward) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Weights of gate (None in plain blocks) and up, float [d_ff, d], a fused matrix taken apart."""
    if block.fused:
        gate, up = block.up.weight.detach().split(block.d_ff)
        return gate, up
    return None if block.gate is None else block.gate.weight.detach(), block.up.weight.detach()


def first_biases(block: FeedForward) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Biases of gate and up, [d_ff], 0 where there are none."""
    if block.fused:
        both = torch.zeros(2 * block.d_ff) if block.up.bias is None else block.up.bias.detach()
        return both[: block.d_ff], both[block.d_ff :]
    gate = 0.0 if block.gate is None or block.gate.bias is None else block.gate.bias.detach()
    return gate, 0.0 if block.up.bias is None else block.up.bias.detach()


def decoded(rows: Rows, device: torch.device) -> torch.Tensor:
    """The values of an int8 matrix, float32 [rows, columns]."""
    codes, scales = (torch.from_numpy(part).to(device) for part in (rows.codes, rows.scales))
    return codes.float() * scales[:, None]
