"""The activation functions that the kernels know, by the names of transformers' configurations."""

from __future__ import annotations

from typing import Any

from ..model.configuration import activation_name

SILU, GELU_TANH, GELU_ERF, RELU = range(4)

_KINDS = {
    "silu": SILU,
    "swish": SILU,
    "gelu_pytorch_tanh": GELU_TANH,
    "gelu_new": GELU_TANH,
    "gelu": GELU_ERF,
    "relu": RELU,
}


def activation_of(config: Any) -> int | None:
    """The function between a block's matrices, or None where the kernels do not have it."""
    return _KINDS.get(activation_name(config))
