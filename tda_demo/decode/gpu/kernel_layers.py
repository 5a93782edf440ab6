"""Puts the GPU kernels in the place of a transformers model's norms and attention, in the families of one layout.

The others keep transformers' own, which a captured step runs too, in more launches. Both arms, whatever runs their
blocks, get the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from ...kernels.gpu.attention import Heads, add_rms_norm, attend, rms_norm
from .one_linear import one_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .static_cache import StaticPromptCache

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_PRE_NORM_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3")  # whose layers are as in KernelLayer


class Unadded(NamedTuple):
    """The hidden states ``x`` + ``update``, both [1, 1, d]; the norm that reads them adds them up in its own launch."""

    x: torch.Tensor
    update: torch.Tensor


class KernelNorm(nn.Module):
    """RMSNorm in one launch."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        self.added = 1.0 if type(norm).__name__.startswith("Gemma") else 0.0  # Gemma stores its weights less one

    def forward(self, hidden_states: torch.Tensor | Unadded) -> torch.Tensor:
        return self.added_up(hidden_states)[1]

    def added_up(self, hidden_states: torch.Tensor | Unadded) -> tuple[torch.Tensor, torch.Tensor]:
        """The hidden states, and what the norm makes of them."""
        if isinstance(hidden_states, Unadded):
            x, update = (each.contiguous() for each in hidden_states)
            return add_rms_norm(x, update, self.weight, self.epsilon, self.added)
        return hidden_states, rms_norm(hidden_states.contiguous(), self.weight, self.epsilon, self.added)


class KernelAttention(nn.Module):
    """Attention of one token over a StaticPromptCache; the output projection stays the model's own."""

    def __init__(self, attention: Any, config: Any) -> None:
        super().__init__()
        self.layer_idx = attention.layer_idx
        for name in ("qkv_proj", "q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            setattr(self, name, getattr(attention, name, None))
        own: Any = self
        if own.qkv_proj is None and (whole := one_linear([own.q_proj, own.k_proj, own.v_proj])):
            own.qkv_proj, own.q_proj, own.k_proj, own.v_proj = whole, None, None, None
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


class KernelLayer(nn.Module):
    """A decoder layer, x + attention(norm(x)) and then x + block(norm(x)), which leaves its last sum to the next norm.

    The next layer's, or the model's own behind the last layer.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.input_layernorm: KernelNorm = layer.input_layernorm
        self.self_attn: KernelAttention = layer.self_attn
        self.post_attention_layernorm: KernelNorm = layer.post_attention_layernorm
        self.mlp: nn.Module = layer.mlp

    def forward(self, hidden_states: torch.Tensor | Unadded, **rest: Any) -> Unadded:
        x, normed = self.input_layernorm.added_up(hidden_states)
        update, _ = self.self_attn(normed, **rest)
        x, normed = self.post_attention_layernorm.added_up(Unadded(x, update))
        return Unadded(x, self.mlp(normed))


def install_layers(model: PreTrainedModel) -> bool:
    """Replaces norms and attention of ``model`` in place, where its family has the layout; whether it has."""
    config: Any = model.config
    if config.model_type not in FAMILIES:
        return False
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            model.set_submodule(name, KernelNorm(module))
    whole: Any = model
    for index, layer in enumerate(whole.model.layers):
        layer.self_attn = KernelAttention(layer.self_attn, config)
        if config.model_type in _PRE_NORM_FAMILIES:
            whole.model.layers[index] = KernelLayer(layer)
    return True


def _window(attention: Any, config: Any) -> int:
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[attention.layer_idx] == "full_attention":
        return 0
    return getattr(attention, "sliding_window", None) or getattr(config, "sliding_window", None) or 0
