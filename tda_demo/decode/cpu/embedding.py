"""A token's embedding for the compiled step, by numpy alone.

A step has pushed everything else out of the processor's caches: what Python does between two of them takes five times
as long as in a loop of its own, and a call of a module is much of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...kernels.formats import INT8
from ...model.stored import StoredEmbedding

Embed = Callable[[int, np.ndarray], None]
"""Writes the embedding of a token into float32 [d]."""


def embedding_of(table: nn.Module) -> Embed:
    """What the input embedding ``table`` of a model gives for one token, bit by bit."""
    if isinstance(table, StoredEmbedding) and table.precision == INT8.name and getattr(table, "embed_scale", 1.0) == 1:
        return _of_codes(table.stored.codes, table.stored.scales)
    if type(table) is nn.Embedding:  # a class of its own may do more, as Gemma's does
        return _of_values(table.weight.detach().numpy())
    return _called(table)


def _of_codes(codes: np.ndarray, scales: np.ndarray) -> Embed:
    def embed(token: int, out: np.ndarray) -> None:
        np.multiply(codes[token], scales[token], out=out, dtype=np.float32)

    return embed


def _of_values(values: np.ndarray) -> Embed:
    def embed(token: int, out: np.ndarray) -> None:
        out[:] = values[token]

    return embed


def _called(table: Any) -> Embed:
    @torch.inference_mode()
    def embed(token: int, out: np.ndarray) -> None:
        out[:] = table(torch.tensor([token]))[0].numpy()

    return embed
