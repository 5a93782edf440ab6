"""Puts the GPU kernels in the place of a transformers model's norms and attention, in the families of one layout.

The others keep transformers' own, which a captured step runs too, in more launches. Both arms, whatever runs their
blocks, get the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...kernels.gpu.attention import Heads, add_rms_norm, attend, rms_norm
from ...kernels.gpu.choice import Timer, choose_linear
from ...kernels.gpu.linear import LinearTiles, linear
from ...kernels.gpu.nf4 import is_nf4, rows_of
from ...model.configuration import window_of
from ...model.family import DecoderLayout, family_of
from ...model.feedforward import find_layers
from ...model.projection import linears_of, query_key_value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .static_cache import StaticPromptCache


_MEASURED = 8  # layers; in NF4 one of a 1B model has 5 MB


class PendingSum(NamedTuple):
    """The hidden states ``x`` + ``update``, both [1, 1, d]; the norm that reads them adds them up in its own launch."""

    x: torch.Tensor
    update: torch.Tensor


class PlacedRotary(nn.Module):
    """A rotary embedding whose tables are made once for ``positions``: a step takes a row and computes nothing."""

    def __init__(self, rotary: nn.Module, positions: int, like: torch.Tensor) -> None:
        super().__init__()
        with torch.no_grad():
            self.tables = rotary(like, torch.arange(positions, device=like.device)[None])

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table.index_select(1, position_ids[0]) for table in self.tables)


class KernelNorm(nn.Module):
    """RMSNorm in one launch; ``offset`` is added to the weight that ``norm`` stores."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = offset

    def forward(self, hidden_states: torch.Tensor | PendingSum) -> torch.Tensor:
        return self.add_up(hidden_states)[1]

    def add_up(self, hidden_states: torch.Tensor | PendingSum) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states, and what the norm makes of them."""
        if isinstance(hidden_states, PendingSum):
            x, update = (part.contiguous() for part in hidden_states)
            return add_rms_norm(x, update, self.weight, self.epsilon, self.offset)
        return hidden_states, rms_norm(hidden_states.contiguous(), self.weight, self.epsilon, self.offset)


class KernelLinear(nn.Module):
    """What ``module``, a plain linear layer or one in NF4, computes of one token, in one launch."""

    def __init__(self, module: nn.Linear, tiles: LinearTiles) -> None:
        super().__init__()
        self.module, self.tiles = module, tiles
        self.weight = rows_of(module) if is_nf4(module) else module.weight.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x.contiguous(), self.weight, self.module.bias, self.tiles)


def linear_of(module: nn.Linear, tiles: LinearTiles | None) -> nn.Module:
    """The kernel in the place of ``module`` where it knows the storage; with ``tiles`` None the module."""
    known = is_nf4(module) or (type(module) is nn.Linear and module.weight.is_floating_point())
    return module if tiles is None or not known else KernelLinear(module, tiles)


class KernelAttention(nn.Module):
    """Attention of one token over a StaticPromptCache."""

    def __init__(self, layout: DecoderLayout, attention: Any, config: Any, tiles: LinearTiles | None) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        *query_key_value, output = attention_linears(layout, attention, config)
        self.qkv = nn.ModuleList([linear_of(module, tiles) for module in query_key_value])
        self.o_proj = linear_of(output, tiles)
        self.head_norms = nn.ModuleList([attention.q_norm, attention.k_norm] if layout.head_norms else [])
        self.heads = Heads(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            size=attention.head_dim,
            scale=attention.scaling,
            window=window_of(config, attention.layer_idx),
            cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        )

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        past_key_values: StaticPromptCache,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = self._project(hidden_states)
        layer: Any = past_key_values.layers[self.layer_idx]
        position = past_key_values.position
        cosine, sine = (table.contiguous() for table in position_embeddings)
        mixed = attend(self.heads, query, key, value, (cosine, sine), position, layer.keys, layer.values)
        return self.o_proj(mixed.view(1, 1, -1)), None

    def _project(self, x: torch.Tensor) -> list[torch.Tensor]:
        size, kv = self.heads.size, self.heads.kv_heads * self.heads.size
        parts = [linear(x) for linear in self.qkv]
        if len(parts) == 1:
            whole = parts[0].reshape(-1)
            parts = list(whole.split([len(whole) - 2 * kv, kv, kv]))
        for part, norm in enumerate(self.head_norms):
            parts[part] = norm(parts[part].reshape(-1, size))
        return parts


class KernelLayer(nn.Module):
    """A decoder layer, x + attention(norm(x)) and then x + block(norm(x)), which leaves its last sum to the next norm.

    The next layer's, or the model's own behind the last layer.
    """

    def __init__(self, layout: DecoderLayout, layer: Any) -> None:
        super().__init__()
        self.before_attention, self.before_block = (getattr(layer, name) for name in layout.norms)
        self.self_attn: KernelAttention = layer.self_attn
        self.mlp: nn.Module = layer.mlp

    def forward(self, hidden_states: torch.Tensor | PendingSum, **rest: Any) -> PendingSum:
        x, normed = self.before_attention.add_up(hidden_states)
        update, _ = self.self_attn(normed, **rest)
        x, normed = self.before_block.add_up(PendingSum(x, update))
        return PendingSum(x, self.mlp(normed))


def install_layers(model: PreTrainedModel, tiles: LinearTiles | None, positions: int) -> bool:
    """Replaces norms and attention of ``model`` in place, where its family has the layout; whether it has.

    ``tiles`` are those of attention's linear layers; with None they stay the model's own. Steps are at the first
    ``positions``.
    """
    family = family_of(model)
    layout = family.decoder
    if layout is None:
        return False
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, KernelNorm(module, layout.norm_offset))
        elif type(module).__name__.endswith("RotaryEmbedding") and _takes_positions_alone(module):
            like = torch.zeros(1, dtype=model.dtype, device=model.device)
            model.set_submodule(name, PlacedRotary(module, positions, like))
    layer: Any
    for index, layer in enumerate(find_layers(model)):
        layer.self_attn = KernelAttention(layout, layer.self_attn, model.config, tiles)
        if layout.is_pre_norm:
            model.set_submodule(f"{family.layers}.{index}", KernelLayer(layout, layer))
    return True


def _takes_positions_alone(rotary: nn.Module) -> bool:
    """Whether one table serves all layers; Gemma 3 asks for one by the kind of a layer."""
    return list(signature(rotary.forward).parameters) == ["x", "position_ids"]


def attention_linears(layout: DecoderLayout, attention: Any, config: Any) -> list[nn.Linear]:
    """Query, key and value, as one layer where they can be, and the output projection."""
    linears = linears_of(query_key_value(layout, attention, config))
    whole = merge_linears(linears) if len(linears) > 1 else None
    return [*(linears if whole is None else [whole]), attention.o_proj]


def measure_linears(model: PreTrainedModel, timer: Timer | None = None) -> LinearTiles | None:
    """The fastest way through attention's linear layers on this card: the kernel's tiles, or None for the modules.

    Measured on layers that are larger together than a cache.
    """
    layout = family_of(model).decoder
    if layout is None:
        return None
    some: Any = find_layers(model)[:_MEASURED]
    modules = [module for layer in some for module in attention_linears(layout, layer.self_attn, model.config)]
    inputs = [torch.randn(1, module.in_features, device=model.device).to(model.dtype) for module in modules]

    def through(modules: Sequence[nn.Module]) -> Callable[[], object]:
        return lambda: [module(x) for module, x in zip(modules, inputs, strict=True)]

    return choose_linear(
        through(modules), lambda tiles: through([linear_of(module, tiles) for module in modules]), timer
    )


def merge_linears(linears: Sequence[nn.Linear]) -> nn.Linear | None:
    """A linear whose outputs are those of ``linears`` one after the other, or None where they are not plain ones.

    Its weight is one tensor, which theirs become views of, in place: for all modules that share them.
    """
    weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
    if any(type(linear) is not nn.Linear for linear in linears) or len({bias is None for bias in biases}) > 1:
        return None
    with torch.device("meta"):
        merged = nn.Linear(weights[0].shape[1], sum(map(len, weights)), bias=False)
    merged.weight = nn.Parameter(_stack(weights), requires_grad=False)
    if biases[0] is not None:
        merged.bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False)
    return merged


def _stack(weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """``weights`` [rows, d] as one contiguous [sum of rows, d], which they are views of afterwards or were before."""
    if _are_consecutive(weights):
        first = weights[0].detach()
        return first.as_strided((sum(map(len, weights)), first.shape[1]), first.stride())
    whole = torch.cat([weight.detach() for weight in weights])
    for weight, part in zip(weights, whole.split([len(weight) for weight in weights]), strict=True):
        weight.data = part
    return whole


def _are_consecutive(weights: Sequence[torch.Tensor]) -> bool:
    first = weights[0]
    at = first.storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.is_contiguous() and weight.storage_offset() == at):
            return False
        at += weight.numel()
    return True
