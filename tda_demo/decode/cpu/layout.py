"""Reads a transformers decoder of the common layout into the arrays of the compiled CPU step.

The layout: RMSNorm, rotary embeddings, grouped-query attention and a GLU MLP, with the variations of llama, mistral,
qwen2, qwen3, gemma2, gemma3 and phi3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ...kernels.activations import activation_of
from ...kernels.cpu import step as cpu
from ...kernels.cpu.mlp import Neurons
from ...kernels.formats import encode, encode_by_neuron, stack
from ...precision import head_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...models import LoadedModel

LAYOUTS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}  # their tables change with the length of the text


@dataclass(frozen=True, eq=False)
class Layout:
    """A decoder as arrays, with all its ``neurons``, layer l's from ``first[l]`` on."""

    shape: cpu.Shape
    shared: cpu.Shared
    neurons: Neurons
    first: np.ndarray  # int64 [layers + 1]


def has_layout(lm: LoadedModel) -> bool:
    """Whether the compiled step can run ``lm``."""
    config: Any = lm.model.config
    if lm.device.type != "cpu" or config.model_type not in LAYOUTS or activation_of(config) is None:
        return False
    parameters = config.rope_parameters
    kinds = parameters.values() if "rope_type" not in parameters else (parameters,)
    return all(kind["rope_type"] not in _LENGTH_DEPENDENT_ROPE for kind in kinds)


@torch.inference_mode()
def read_layout(lm: LoadedModel) -> Layout:
    """The arrays of ``lm``, whose weights are float32 values that ``lm.precision`` can hold."""
    whole: Any = lm.model
    model, config = whole.model, whole.config
    attention = [layer.self_attn for layer in model.layers]
    qkv = stack(encode(_weight_of(each), lm.precision) for each in attention)
    out = stack(encode(each.o_proj.weight, lm.precision) for each in attention)
    head = encode(whole.get_output_embeddings().weight, head_format(lm.precision))
    head_dim = attention[0].head_dim
    layers = range(len(attention))
    first = np.concatenate([[0], np.cumsum([block.d_ff for block in lm.blocks])])
    neurons, output_scale = _neurons(lm, first)
    shared = cpu.Shared(
        norms=np.stack([_norms(layer, config.hidden_size) for layer in model.layers]),
        head_norms=np.stack([_head_norms(each, head_dim) for each in attention]),
        qkv=qkv.codes,
        qkv_scale=qkv.scales,
        qkv_bias=np.stack([_bias_of(each) for each in attention]),
        out=out.codes,
        out_scale=out.scales,
        out_bias=np.stack([_bias(each.o_proj) for each in attention]),
        output_scale=output_scale,
        down_bias=np.stack([_bias(block.down) for block in lm.blocks]),
        final_norm=_norm_weight(model.norm),
        head=head.codes,
        head_scale=head.scales,
        window=np.array([_window(each, config, layer) for each, layer in zip(attention, layers, strict=True)]),
        rope=np.array([_rope_kinds(config).index(_layer_kind(config, layer)) for layer in layers]),
    )
    shape = cpu.Shape(
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=head_dim,
        rotary=rope_tables(lm.model, 1)[0].shape[2],
        activation=cast(int, activation_of(config)),
        epsilon=config.rms_norm_eps,
        attention_scale=attention[0].scaling,
        attention_cap=getattr(config, "attn_logit_softcapping", None) or 0.0,
        final_cap=getattr(config, "final_logit_softcapping", None) or 0.0,
        output_norms=hasattr(model.layers[0], "pre_feedforward_layernorm"),
        head_norms=hasattr(attention[0], "q_norm"),
    )
    return Layout(shape, shared, neurons, first)


def rope_tables(model: PreTrainedModel, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's own rotary cosines and sines, float32 [tables, positions, half the rotated part of a head]."""
    rotary: Any = model.model.rotary_emb  # type: ignore[union-attr]
    where = torch.arange(positions)[None]
    like = torch.zeros(1)
    tables = [rotary(like, where, *([kind] if kind else [])) for kind in _rope_kinds(model.config)]
    half = tables[0][0].shape[-1] // 2
    cosines, sines = (np.stack([table[part][0, :, :half].numpy() for table in tables]) for part in (0, 1))
    return cosines, sines


def _rope_kinds(config: Any) -> list[str | None]:
    """Layer types with a rotary table each; one unnamed table where all layers share it."""
    return [None] if "rope_type" in config.rope_parameters else sorted(set(config.layer_types))


def _layer_kind(config: Any, layer: int) -> str | None:
    return None if "rope_type" in config.rope_parameters else config.layer_types[layer]


def _window(attention: Any, config: Any, layer: int) -> int:
    if getattr(config, "layer_types", None) and config.layer_types[layer] == "full_attention":
        return 0
    return getattr(attention, "sliding_window", None) or getattr(config, "sliding_window", None) or 0


def _weight_of(attention: Any) -> torch.Tensor:
    if hasattr(attention, "qkv_proj"):
        return attention.qkv_proj.weight
    return torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])


def _bias_of(attention: Any) -> np.ndarray:
    if hasattr(attention, "qkv_proj"):
        return _bias(attention.qkv_proj)
    return np.concatenate([_bias(attention.q_proj), _bias(attention.k_proj), _bias(attention.v_proj)])


def _bias(linear: nn.Linear) -> np.ndarray:
    return np.zeros(linear.weight.shape[0], np.float32) if linear.bias is None else linear.bias.float().numpy()


def _norm_weight(norm: nn.Module) -> np.ndarray:
    """What the normalised vector is multiplied by; Gemma's norms store it less one."""
    weight = norm.get_parameter("weight").float().numpy()
    return weight + 1 if type(norm).__name__.startswith("Gemma") else weight.copy()


def _norms(layer: Any, width: int) -> np.ndarray:
    if hasattr(layer, "pre_feedforward_layernorm"):
        norms = (
            layer.input_layernorm,
            layer.post_attention_layernorm,
            layer.pre_feedforward_layernorm,
            layer.post_feedforward_layernorm,
        )
        return np.stack([_norm_weight(norm) for norm in norms])
    unused = np.ones(width, np.float32)
    return np.stack([_norm_weight(layer.input_layernorm), unused, _norm_weight(layer.post_attention_layernorm), unused])


def _head_norms(attention: Any, head_dim: int) -> np.ndarray:
    if not hasattr(attention, "q_norm"):
        return np.ones((2, head_dim), np.float32)
    return np.stack([_norm_weight(attention.q_norm), _norm_weight(attention.k_norm)])


def _neurons(lm: LoadedModel, first: np.ndarray) -> tuple[Neurons, np.ndarray]:
    """Every neuron of every layer, and the scales [layers, d] of their outputs.

    Written layer by layer into place: these are the largest arrays there are.
    """
    count, width = first[-1], lm.model.config.hidden_size
    like, like_down = encode(torch.zeros(1, width), lm.precision), encode_by_neuron(torch.zeros(width, 1), lm.precision)
    gate, up, down = (np.empty((count, *like.codes.shape[1:]), like.codes.dtype) for _ in range(3))
    gate_scale, up_scale = (np.empty((count, *like.scales.shape[1:]), np.float32) for _ in range(2))
    down_scale = np.empty((count, *like_down.block_scales.shape[1:]), np.float32)
    gate_bias, up_bias = (np.zeros(count, np.float32) for _ in range(2))
    output_scale = np.empty((len(lm.blocks), width), np.float32)
    for block, start in zip(lm.blocks, first, strict=False):
        here = slice(start, start + block.d_ff)
        halves = block.up.weight.chunk(2) if block.gate is None else (block.gate.weight, block.up.weight)
        gate_rows, up_rows = (encode(each, lm.precision) for each in halves)
        down_columns = encode_by_neuron(block.down.weight, lm.precision)
        gate[here], gate_scale[here] = gate_rows.codes, gate_rows.scales
        up[here], up_scale[here] = up_rows.codes, up_rows.scales
        down[here], down_scale[here] = down_columns.codes, down_columns.block_scales
        output_scale[block.layer] = down_columns.output_scales
        if block.gate is not None:
            gate_bias[here], up_bias[here] = _bias(block.gate), _bias(block.up)
    return Neurons(gate, up, down, gate_scale, up_scale, down_scale, gate_bias, up_bias), output_scale
