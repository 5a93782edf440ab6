"""The activation functions that the kernels know, by the names of transformers' configurations."""

from __future__ import annotations

from typing import Any

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
    for field in ("hidden_activation", "hidden_act", "activation_function"):
        if name := getattr(config, field, None):
            return _KINDS.get(name)
    return None
