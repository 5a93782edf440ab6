"""A prompt's keys and values, which all arms of a race read: one copy, whatever number of arms there are."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True, eq=False)
class PromptCache:
    """``keys`` and ``values`` float32 [layers, kv_heads, T, head_dim] of a prompt; arms read them and write none."""

    keys: np.ndarray
    values: np.ndarray

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]


_prompts: weakref.WeakKeyDictionary[Cache, PromptCache] = weakref.WeakKeyDictionary()


def prompt_of(cache: Cache) -> PromptCache:
    """What ``cache`` holds, in one piece for all arms that start from it; its own tensors become views of that."""
    if cache not in _prompts:
        layers: Any = cache.layers
        keys, values = (np.empty((len(layers), *layers[0].keys.shape[1:]), np.float32) for _ in range(2))
        for number, layer in enumerate(layers):  # one by one, so that not all of it is there twice
            for name, whole in (("keys", keys), ("values", values)):
                whole[number] = getattr(layer, name)[0].numpy()
                setattr(layer, name, torch.from_numpy(whole[number : number + 1]))
        _prompts[cache] = PromptCache(keys, values)
    return _prompts[cache]
