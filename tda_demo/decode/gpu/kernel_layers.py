"""Puts the GPU kernels in the place of a transformers model's norms and attention, in the families of one layout.

The others keep transformers' own, which a captured step runs too, in more launches. Both arms, whatever runs their
blocks, get the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...kernels.gpu.attention import Heads, attend, rms_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .static_cache import StaticPromptCache

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")


class KernelNorm(nn.Module):
    """RMSNorm in one launch."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.added = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0  # Gemma stores its weights less one

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states.contiguous(), self.weight, self.epsilon, self.added)


class KernelAttention(nn.Module):
    """Attention of one token over a StaticPromptCache; the projections stay the model's own."""

    def __init__(self, attention: Any, config: Any) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        for name in ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            setattr(self, name, getattr(attention, name, None))
        self.heads = Heads(
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            size=attention.head_dim,
            scale=attention.scaling,
            window=_window(attention, config),
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
        out: Any = self.o_proj
        return out(mixed.view(1, 1, -1)), None

    def _projected(self, x: torch.Tensor) -> list[torch.Tensor]:
        modules: Any = self
        size, kv = self.heads.size, self.heads.kv_heads * self.heads.size
        if modules.qkv_proj is not None:
            whole = modules.qkv_proj(x)
            parts = list(whole.reshape(-1).split([whole.numel() - 2 * kv, kv, kv]))
        else:
            parts = [modules.q_proj(x), modules.k_proj(x), modules.v_proj(x)]
        if modules.q_norm is not None:
            parts[0] = modules.q_norm(parts[0].reshape(-1, size))
            parts[1] = modules.k_norm(parts[1].reshape(-1, size))
        return parts


def install_layers(model: PreTrainedModel) -> bool:
    """Replaces norms and attention of ``model`` in place, where its family has the layout; whether it has."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        return False
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, KernelNorm(module))
    whole: Any = model
    for layer in whole.model.layers:
        layer.self_attn = KernelAttention(layer.self_attn, config)
    return True


def _window(attention: Any, config: Any) -> int:
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[attention.layer_idx] == "full_attention":
        return 0
    return getattr(attention, "sliding_window", None) or getattr(config, "sliding_window", None) or 0
