"""The first thing a compiled step reads: the row of its token in the model's own table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from .rows import LOOP, f32


class Embedding(NamedTuple):
    """The token that a step takes, and the table. A step is compiled apart for codes and for floats."""

    token: np.ndarray  # int64 [1], a row of the table: compiled code does not check
    rows: np.ndarray  # int8 or float32 [vocabulary, d]
    scales: np.ndarray | None  # float32 [vocabulary], of codes


def embed(rows, scales, token, out):
    """``out`` float32 [d] = row ``token`` of an ``Embedding``, times its scale where there are scales."""
    raise NotImplementedError("only inside compiled code")


@overload(embed, jit_options=LOOP)
def _embed(rows, scales, token, out):
    return _copy_row if scales in (None, types.none) else _scale_row


def _copy_row(rows, scales, token, out):
    row = rows[token]
    for j in range(out.shape[0]):
        out[j] = row[j]


def _scale_row(rows, scales, token, out):
    row, scale = rows[token], scales[token]
    for j in range(out.shape[0]):
        out[j] = f32(row[j]) * scale
