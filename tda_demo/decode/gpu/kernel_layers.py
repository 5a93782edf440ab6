"""Puts the GPU kernels in the place of a transformers model's norms and attention, in the families of one layout.

The others keep transformers' own, which a captured step runs too, in more launches. Both arms, whatever runs their
blocks, get the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...kernels.gpu.attention import Heads, add_rms_norm, attend, rms_norm
from ...model.configuration import window_of
from ...model.family import DecoderLayout, family_of
from ...model.feedforward import find_layers
from ...model.projection import linears_of, query_key_value
from .one_linear import one_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .static_cache import StaticPromptCache


class Unadded(NamedTuple):
    """The hidden states ``x`` + ``update``, both [1, 1, d]; the norm that reads them adds them up in its own launch."""

    x: torch.Tensor
    update: torch.Tensor


class KernelNorm(nn.Module):
    """RMSNorm in one launch; ``offset`` is added to the weight that ``norm`` stores."""

    def __init__(self, norm: Any, offset: float) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.offset = offset

    def forward(self, hidden_states: torch.Tensor | Unadded) -> torch.Tensor:
        return self.added_up(hidden_states)[1]

    def added_up(self, hidden_states: torch.Tensor | Unadded) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states, and what the norm makes of them."""
        if isinstance(hidden_states, Unadded):
            x, update = (each.contiguous() for each in hidden_states)
            return add_rms_norm(x, update, self.weight, self.epsilon, self.offset)
        return hidden_states, rms_norm(hidden_states.contiguous(), self.weight, self.epsilon, self.offset)


class KernelAttention(nn.Module):
    """Attention of one token over a StaticPromptCache; the output projection stays the model's own."""

    def __init__(self, layout: DecoderLayout, attention: Any, config: Any) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        linears = linears_of(query_key_value(layout, attention, config))
        whole = one_linear(linears) if len(linears) > 1 else None
        self.qkv = nn.ModuleList(linears if whole is None else [whole])
        self.o_proj: nn.Module = attention.o_proj
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
        query, key, value = self._projected(hidden_states)
        layer: Any = past_key_values.layers[self.layer_idx]
        position = past_key_values.position
        cosine, sine = (each.contiguous() for each in position_embeddings)
        mixed = attend(self.heads, query, key, value, (cosine, sine), position, layer.keys, layer.values)
        return self.o_proj(mixed.view(1, 1, -1)), None

    def _projected(self, x: torch.Tensor) -> list[torch.Tensor]:
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

    def forward(self, hidden_states: torch.Tensor | Unadded, **rest: Any) -> Unadded:
        x, normed = self.before_attention.added_up(hidden_states)
        update, _ = self.self_attn(normed, **rest)
        x, normed = self.before_block.added_up(Unadded(x, update))
        return Unadded(x, self.mlp(normed))


def install_layers(model: PreTrainedModel) -> bool:
    """Replaces norms and attention of ``model`` in place, where its family has the layout; whether it has."""
    family = family_of(model)
    layout = family.decoder
    if layout is None:
        return False
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, KernelNorm(module, layout.norm_offset))
    layer: Any
    for index, layer in enumerate(find_layers(model)):
        layer.self_attn = KernelAttention(layout, layer.self_attn, model.config)
        if layout.is_pre_norm:
            model.set_submodule(f"{family.layers}.{index}", KernelLayer(layout, layer))
    return True
