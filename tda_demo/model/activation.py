"""The function between the matrices of a feed-forward block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .family import family_named

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Activation = Callable[["torch.Tensor"], "torch.Tensor"]


def activation_field(config: Any) -> str:
    """The field of ``config`` that names the function."""
    return family_named(config.model_type).block.function_field


def activation_name(config: Any) -> str:
    """What ``config`` calls the function, e.g. "silu"; empty where it is said elsewhere, in a part of it."""
    return getattr(config, activation_field(config), "")


def activation_function(model: PreTrainedModel) -> Activation:
    """The function of the blocks of ``model``."""
    from transformers.activations import ACT2FN

    return ACT2FN[activation_name(model.config.get_text_config())]
