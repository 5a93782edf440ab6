"""A KV cache of fixed size for one sequence, its position on the device, so that a captured step can be replayed.

transformers' StaticCache counts in every layer, and its sliding-window layers count on the host: a replayed graph would
not see them move. Here all layers share one device-side position and keep every token; what a layer may attend to is
said by the mask alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import Cache
from transformers.cache_utils import StaticLayer

from ...model.configuration import layer_kinds, window_of_kind

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class _Layer(StaticLayer):
    """Writes the keys and values of one token at ``position`` int64 [1]."""

    def __init__(self, max_cache_len: int, position: torch.Tensor) -> None:
        super().__init__(max_cache_len)
        self.position = position

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys: Any = self.keys
        values: Any = self.values
        keys.index_copy_(2, self.position, key_states)
        values.index_copy_(2, self.position, value_states)
        return keys, values

    def get_seq_length(self) -> Any:
        return self.position


class StaticPromptCache(Cache):
    """Room for ``positions`` tokens, shaped after ``prompt_cache``; ``fill`` makes it hold a prompt."""

    def __init__(self, prompt_cache: Cache, positions: int, position: torch.Tensor) -> None:
        super().__init__(layers=[_Layer(positions, position) for _ in prompt_cache.layers])
        self.positions = positions
        self.position = position
        for layer, cached in self._pairs(prompt_cache):
            layer.lazy_initialization(cached.keys[:1], cached.values[:1])

    def fill(self, prompt_cache: Cache) -> int:
        """Takes over the keys and values [1, kv_heads, T, head_dim] of every layer; returns T, the next position."""
        tokens = int(prompt_cache.get_seq_length())
        for layer, cached in self._pairs(prompt_cache):
            layer.keys[:, :, :tokens].copy_(cached.keys)
            layer.values[:, :, :tokens].copy_(cached.values)
        self.position.fill_(tokens)
        return tokens

    def _pairs(self, prompt_cache: Cache) -> list[tuple[Any, Any]]:
        return list(zip(self.layers, prompt_cache.layers, strict=True))


def attention_masks(
    config: PreTrainedConfig, positions: int, position: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Additive mask [1, 1, 1, positions] of the token at ``position`` int64 [1]; one a kind where layers have kinds."""
    places = torch.arange(positions, device=position.device)
    blocked = torch.finfo(dtype).min

    def mask(kind: str | None) -> torch.Tensor:
        window = window_of_kind(config, kind)
        allowed = (places <= position) & (places > position - window) if window else places <= position
        return torch.where(allowed, 0.0, blocked).to(dtype)[None, None, None]

    kinds = layer_kinds(config)
    return {kind: mask(kind) for kind in set(kinds)} if kinds else mask(None)
