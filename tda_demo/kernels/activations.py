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
_FIELDS = ("hidden_activation", "hidden_act", "activation_function")  # gemma; most families; opt


def activation_field(config: Any) -> str:
    """The field of ``config`` that names the function between a block's matrices; empty where there is none."""
    return next((field for field in _FIELDS if getattr(config, field, None)), "")


def activation_of(config: Any) -> int | None:
    """The function between a block's matrices, or None where the kernels do not have it."""
    return _KINDS.get(getattr(config, activation_field(config), ""))
