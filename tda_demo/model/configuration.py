"""What is true of one model, read off its configuration: activation function, attention windows, rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .family import family_named

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Activation = Callable[["torch.Tensor"], "torch.Tensor"]

_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def activation_field(config: Any) -> str:
    """The field of ``config`` that names the activation function."""
    return family_named(config.model_type).block.function_field


def activation_name(config: Any) -> str:
    """What ``config`` calls the function, e.g. "silu"; empty where it is said elsewhere, in a part of it."""
    return getattr(config, activation_field(config), "")


def activation_function(model: PreTrainedModel) -> Activation:
    """The function of the blocks of ``model``."""
    from transformers.activations import ACT2FN

    return ACT2FN[activation_name(model.config.get_text_config())]


def window_of(config: Any, layer: int) -> int:
    """How many positions a token of ``layer`` attends to, itself included; 0 where it attends to all before it."""
    kinds = layer_kinds(config)
    return window_of_kind(config, kinds[layer] if kinds else None)


def window_of_kind(config: Any, kind: str | None) -> int:
    """``window_of`` the layers of one of ``layer_kinds``, or of all layers (None) where there are no kinds."""
    return (getattr(config, "sliding_window", None) or 0) if kind in (None, "sliding_attention") else 0


def layer_kinds(config: Any) -> list[str] | None:
    """The kind of attention of every layer; None where the configuration knows no kinds."""
    return getattr(config, "layer_types", None) or None


def rope_kinds(config: Any) -> list[str | None]:
    """The kinds of layers that have a rotary table each; one without a name where all layers share a table."""
    return sorted(set(config.layer_types)) if _has_rope_by_kind(config) else [None]


def rope_kind(config: Any, layer: int) -> str | None:
    """Which of ``rope_kinds`` a layer has."""
    return config.layer_types[layer] if _has_rope_by_kind(config) else None


def has_length_dependent_rope(config: Any) -> bool:
    """Whether the rotary tables change with the length of the text: choosing one looks at the positions' values."""
    parameters = _rope_parameters(config)
    tables = parameters.values() if _has_rope_by_kind(config) else (parameters,)
    return any(table.get("rope_type") in _LENGTH_DEPENDENT_ROPE for table in tables)


def _rope_parameters(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _has_rope_by_kind(config: Any) -> bool:
    parameters = _rope_parameters(config)
    return bool(parameters) and "rope_type" not in parameters
