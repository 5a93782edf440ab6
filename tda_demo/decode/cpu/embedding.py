"""A token's embedding for the compiled step, which reads the model's own table by itself.

A step has pushed everything else out of the processor's caches: what Python does between two of them takes five times
as long as in a loop of its own, and one call of numpy 50 us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...kernels.cpu.embedding import Embedding
from ...kernels.formats import INT8
from ...model.stored import StoredEmbedding


class TokenEmbedding:
    """What the input embedding ``table`` of a model gives for one token, bit by bit; ``arrays`` are the step's."""

    def __init__(self, table: nn.Module) -> None:
        self._compute: Callable[[int], np.ndarray] | None = None
        token, scales = np.zeros(1, np.int64), None
        if isinstance(table, StoredEmbedding) and _is_plain(table):
            rows, scales = table.stored.codes, table.stored.scales
        elif type(table) is nn.Embedding:  # a class of its own may do more, as Gemma's does
            rows = table.weight.detach().numpy()
        else:
            self._compute = _called(table)
            rows = self._compute(0)[None].copy()
        self.arrays = Embedding(token, rows, scales)

    def use(self, token: int) -> None:
        """The next step takes ``token``.

        Raises:
            IndexError: the table has no such row.
        """
        if self._compute is None:
            if not 0 <= token < len(self.arrays.rows):  # compiled code would read beyond the table
                raise IndexError(f"the model has no embedding for token {token}")
            self.arrays.token[0] = token
        else:
            self.arrays.rows[0] = self._compute(token)


def _is_plain(table: StoredEmbedding) -> bool:
    return table.precision == INT8.name and getattr(table, "embed_scale", 1.0) == 1


def _called(table: Any) -> Callable[[int], np.ndarray]:
    @torch.inference_mode()
    def compute(token: int) -> np.ndarray:
        return table(torch.tensor([token]))[0].numpy()

    return compute
