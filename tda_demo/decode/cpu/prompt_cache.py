"""A prompt's keys and values, which all arms of a race read: one copy, whatever number of arms there are."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels.cpu.halves import as_halves
from ...kernels.cpu.processor import HAS_HALVES
from ...model.precision import PRECISIONS

if TYPE_CHECKING:
    from transformers import Cache


@dataclass(frozen=True, eq=False)
class PromptCache:
    """``keys`` and ``values`` [layers, kv_heads, T, head_dim] of a prompt; arms read them and write none.

    float32, or half precision (``kernels.cpu.halves``).
    """

    keys: np.ndarray
    values: np.ndarray

    @property
    def tokens(self) -> int:
        return self.keys.shape[2]


_prompts: weakref.WeakKeyDictionary[Cache, PromptCache] = weakref.WeakKeyDictionary()


def number_type(precision: str) -> type[np.generic]:
    """Of keys and values: halves beside weights of 8 bits or fewer, whose own rounding costs far more."""
    return np.uint16 if HAS_HALVES and PRECISIONS[precision].bytes_per_weight < 2 else np.float32


def prompt_of(cache: Cache, kind: type[np.generic]) -> PromptCache:
    """What ``cache`` holds, in one piece for all arms that start from it, all of one ``kind``.

    Where that is float32, the cache's own tensors become views of it.
    """
    if cache not in _prompts:
        layers: Any = cache.layers
        keys, values = (np.empty((len(layers), *layers[0].keys.shape[1:]), kind) for _ in range(2))
        for number, layer in enumerate(layers):  # one by one, so that not all of it is there twice
            for name, whole in (("keys", keys), ("values", values)):
                numbers = getattr(layer, name)[0]
                if kind == np.float32:
                    whole[number] = numbers.numpy()
                    setattr(layer, name, torch.from_numpy(whole[number : number + 1]))
                else:
                    whole[number] = as_halves(numbers)
        _prompts[cache] = PromptCache(keys, values)
    assert _prompts[cache].keys.dtype == kind  # one model has one precision
    return _prompts[cache]
