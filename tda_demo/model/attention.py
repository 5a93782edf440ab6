"""What attention does in a model, read off its configuration and modules: windows, rotary positions, q, k and v."""

from __future__ import annotations

from typing import Any

from .family import DecoderLayout
from .projection import Projection

_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


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


def query_key_value(layout: DecoderLayout, attention: Any, config: Any) -> tuple[Projection, ...]:
    """The three projections of the module ``attention``, whatever linears hold them."""
    linears = [getattr(attention, name) for name in layout.qkv]
    if len(linears) == 3:
        return tuple(Projection.whole(linear) for linear in linears)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    return Projection.parts(linears[0], [count * attention.head_dim for count in heads])


def _rope_parameters(config: Any) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _has_rope_by_kind(config: Any) -> bool:
    parameters = _rope_parameters(config)
    return bool(parameters) and "rope_type" not in parameters
