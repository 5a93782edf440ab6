"""Reads a transformers decoder of the common layout into the arrays of the compiled CPU step.

The layout, and what varies in it from family to family, is ``model.family.DecoderLayout``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ...kernels.activations import activation_of
from ...kernels.cpu import step as cpu
from ...kernels.cpu.layer import Neurons
from ...kernels.formats import ByNeuron, Rows, encode, encode_by_neuron, stack
from ...model.configuration import has_length_dependent_rope, rope_kind, rope_kinds, window_of
from ...model.family import DecoderLayout, family_of
from ...model.feedforward import find_layers
from ...model.precision import head_format
from ...model.projection import Projection, query_key_value
from ...model.stored import StoredLinear, joined, neurons_of, rows_of
from ...support.memory import trim_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...model.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class Layout:
    """A decoder as arrays, with all its ``neurons``, layer l's from ``first[l]`` on."""

    shape: cpu.Shape
    shared: cpu.Shared
    neurons: Neurons
    first: np.ndarray  # int64 [layers + 1]

    @property
    def everything(self) -> cpu.Active:
        """All neurons, as the dense arm computes them."""
        return cpu.Active(self.first, None)


def has_layout(lm: LoadedModel) -> bool:
    """Whether the compiled step can run ``lm``."""
    config = lm.model.config
    return (
        lm.device.type == "cpu"
        and family_of(lm.model).decoder is not None
        and activation_of(config) is not None
        and not has_length_dependent_rope(config)
    )


@torch.inference_mode()
def read_layout(lm: LoadedModel) -> Layout:
    """The arrays of ``lm``, which ``has_layout``; its weights are float32 values that ``lm.precision`` can hold."""
    whole: Any = lm.model
    config = whole.config
    family = cast(DecoderLayout, family_of(whole).decoder)
    layers: Any = find_layers(whole)
    attention = [layer.self_attn for layer in layers]
    projections = [query_key_value(family, part, config) for part in attention]
    qkv = stack(joined([rows_of(linear, lm.precision) for linear in three]) for three in projections)
    out = stack(rows_of(part.o_proj, lm.precision) for part in attention)
    for layer, part in enumerate(attention):
        _hold(projections[layer], Rows(qkv.codes[layer], qkv.scales[layer]))
        _hold([Projection.whole(part.o_proj)], Rows(out.codes[layer], out.scales[layer]))
    head = rows_of(whole.get_output_embeddings(), head_format(lm.precision))
    head_dim = attention[0].head_dim
    first = np.concatenate([[0], np.cumsum([block.d_ff for block in lm.blocks])])
    neurons, output_scale = _neurons(lm, first)
    shared = cpu.Shared(
        norms=np.stack([_norms(family, layer, config.hidden_size) for layer in layers]),
        head_norms=np.stack([_head_norms(family, part, head_dim) for part in attention]),
        qkv=qkv.codes,
        qkv_scale=qkv.scales,
        qkv_bias=np.stack([np.concatenate([_bias(linear) for linear in three]) for three in projections]),
        out=out.codes,
        out_scale=out.scales,
        out_bias=np.stack([_bias(part.o_proj) for part in attention]),
        output_scale=output_scale,
        down_bias=np.stack([_bias(block.down) for block in lm.blocks]),
        final_norm=_norm_weight(family, whole.model.norm),
        head=head.codes,
        head_scale=head.scales,
        window=np.array([window_of(config, layer) for layer in range(len(layers))]),
        rope=np.array([rope_kinds(config).index(rope_kind(config, layer)) for layer in range(len(layers))]),
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
        output_norms=not family.is_pre_norm,
        head_norms=family.head_norms,
    )
    trim_memory()
    return Layout(shape, shared, neurons, first)


def rope_tables(model: PreTrainedModel, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's own rotary cosines and sines, float32 [tables, positions, half the rotated part of a head]."""
    rotary: Any = model.model.rotary_emb  # type: ignore[union-attr]
    where = torch.arange(positions)[None]
    like = torch.zeros(1)
    tables = [rotary(like, where, *([kind] if kind else [])) for kind in rope_kinds(model.config)]
    half = tables[0][0].shape[-1] // 2
    cosines, sines = (np.stack([table[part][0, :, :half].numpy() for table in tables]) for part in (0, 1))
    return cosines, sines


def _bias(linear: nn.Linear | Projection) -> np.ndarray:
    return np.zeros(linear.out_features, np.float32) if linear.bias is None else linear.bias.float().numpy()


def _norm_weight(family: DecoderLayout, norm: nn.Module) -> np.ndarray:
    """What the normalised vector is multiplied by."""
    return norm.get_parameter("weight").float().numpy() + np.float32(family.norm_offset)


def _norms(family: DecoderLayout, layer: nn.Module, width: int) -> np.ndarray:
    """float32 [4, d]: before and after attention, before and after the block; ones where there is none."""
    weights = [_norm_weight(family, layer.get_submodule(name)) for name in family.norms]
    if not family.is_pre_norm:
        return np.stack(weights)
    unused = np.ones(width, np.float32)
    return np.stack([weights[0], unused, weights[1], unused])


def _head_norms(family: DecoderLayout, attention: Any, head_dim: int) -> np.ndarray:
    """float32 [2, size of a head]: of queries and of keys; ones where there is none."""
    if not family.head_norms:
        return np.ones((2, head_dim), np.float32)
    return np.stack([_norm_weight(family, attention.q_norm), _norm_weight(family, attention.k_norm)])


def _hold(projections: Iterable[Projection], rows: Rows) -> None:
    """Has linears that hold codes only share the step's ``rows``, where each has a matrix of its own."""
    begin = 0
    for projection in projections:
        linear, end = projection.linear, begin + projection.out_features
        if isinstance(linear, StoredLinear) and linear.out_features == end - begin:
            linear.stored = Rows(rows.codes[begin:end], rows.scales[begin:end])
        begin = end


def _neurons(lm: LoadedModel, first: np.ndarray) -> tuple[Neurons, np.ndarray]:
    """Every neuron of every layer, and the scales [layers, d] of their outputs.

    Written layer by layer into place: these are the largest arrays there are.
    """
    count, width = first[-1], lm.model.config.hidden_size
    like, like_down = encode(torch.zeros(1, width), lm.precision), encode_by_neuron(torch.zeros(width, 1), lm.precision)
    stored = (like.codes, like.codes, like_down.codes)
    gate, up, down = (np.empty((count, *codes.shape[1:]), codes.dtype) for codes in stored)
    gate_scale, up_scale = (np.empty((count, *like.scales.shape[1:]), np.float32) for _ in range(2))
    down_scale = np.empty((count, *like_down.block_scales.shape[1:]), np.float32)
    gate_bias, up_bias = (np.zeros(count, np.float32) for _ in range(2))
    output_scale = np.empty((len(lm.blocks), width), np.float32)
    for block, start in zip(lm.blocks, first, strict=False):
        here = slice(start, start + block.d_ff)
        assert block.gate is not None  # the layout's blocks are GLU
        gate_rows, up_rows = (rows_of(projection, lm.precision) for projection in (block.gate, block.up))
        down_columns = neurons_of(block.down, lm.precision)
        gate[here], gate_scale[here] = gate_rows.codes, gate_rows.scales
        up[here], up_scale[here] = up_rows.codes, up_rows.scales
        down[here], down_scale[here] = down_columns.codes, down_columns.block_scales
        output_scale[block.layer] = down_columns.output_scales
        gate_bias[here], up_bias[here] = _bias(block.gate), _bias(block.up)
        _hold([block.gate], Rows(gate[here], gate_scale[here]))
        _hold([block.up], Rows(up[here], up_scale[here]))
        if isinstance(block.down, StoredLinear):
            block.down.stored = ByNeuron(down[here], down_scale[here], down_columns.output_scales)
    return Neurons(gate, up, down, gate_scale, up_scale, down_scale, gate_bias, up_bias), output_scale
