"""Reads a transformers decoder of the common layout into the arrays of the compiled CPU step.

The layout, and what varies in it from family to family, is ``model.family.DecoderLayout``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from ...kernels.activations import activation_of
from ...kernels.cpu.decoder import Shape, Shared
from ...kernels.cpu.layer import Neurons
from ...kernels.cpu.step import Active
from ...kernels.formats import ByNeuron, Rows, format_of
from ...model.configuration import has_length_dependent_rope, rope_kind, rope_kinds, window_of
from ...model.family import DecoderLayout, family_of
from ...model.feedforward import find_layers
from ...model.precision import head_format
from ...model.projection import Projection, query_key_value
from ...model.stored import StoredLinear, neurons_of, rows_of, side_by_side
from ...support.memory import trim_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ...model.loading import LoadedModel


@dataclass(frozen=True, eq=False)
class Layout:
    """A decoder as arrays, with all its ``neurons``, layer l's from ``first[l]`` on."""

    shape: Shape
    shared: Shared
    neurons: Neurons
    first: np.ndarray  # int64 [layers + 1]

    @property
    def everything(self) -> Active:
        """All neurons, as the dense arm computes them."""
        return Active(self.first, None)


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
    qkv = _rows_of_all([part for three in projections for part in three], lm.precision)
    out = _rows_of_all([Projection.whole(part.o_proj) for part in attention], lm.precision)
    head = rows_of(whole.get_output_embeddings(), head_format(lm.precision))
    head_dim = attention[0].head_dim
    first = np.concatenate([[0], np.cumsum([block.d_ff for block in lm.blocks])])
    neurons, output_scale = _neurons(lm)
    shared = Shared(
        norms=np.stack([_norms(family, layer, config.hidden_size) for layer in layers]),
        head_norms=np.stack([_head_norms(family, part, head_dim) for part in attention]),
        qkv=_by_layer(qkv.codes, layers),
        qkv_scale=_by_layer(qkv.scales, layers),
        qkv_bias=np.stack([np.concatenate([_bias(linear) for linear in three]) for three in projections]),
        out=_by_layer(out.codes, layers),
        out_scale=_by_layer(out.scales, layers),
        out_bias=np.stack([_bias(part.o_proj) for part in attention]),
        output_scale=output_scale,
        down_bias=np.stack([_bias(block.down) for block in lm.blocks]),
        final_norm=_norm_weight(family, whole.model.norm),
        head=head.codes,
        head_scale=head.scales,
        window=np.array([window_of(config, layer) for layer in range(len(layers))]),
        rope=np.array([rope_kinds(config).index(rope_kind(config, layer)) for layer in range(len(layers))]),
    )
    shape = Shape(
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


def _by_layer(array: np.ndarray, layers: Sequence[Any]) -> np.ndarray:
    """[layers, ...] of an array that has all layers' parts one below the other."""
    return array.reshape(len(layers), -1, *array.shape[1:])


def _rows_of_all(matrices: Sequence[Projection], precision: str) -> Rows:
    """Those of every matrix one below the other: as they lie in memory, or else written into place one by one.

    Linears that hold codes only hold those from then on, where each has a matrix of its own.
    """
    if all(isinstance(matrix.linear, StoredLinear) for matrix in matrices):
        parts = [rows_of(matrix, precision) for matrix in matrices]
        codes, scales = side_by_side([part.codes for part in parts]), side_by_side([part.scales for part in parts])
        if codes is not None and scales is not None:
            return Rows(codes, scales)
    whole = format_of(precision).empty(sum(matrix.out_features for matrix in matrices), matrices[0].linear.in_features)
    begin = 0
    for matrix in matrices:
        here, rows = slice(begin, begin + matrix.out_features), rows_of(matrix, precision)
        whole.codes[here], whole.scales[here] = rows.codes, rows.scales
        if isinstance(matrix.linear, StoredLinear) and matrix.is_whole:
            matrix.linear.stored = Rows(whole.codes[here], whole.scales[here])
        begin = here.stop
    return whole


def _neurons_of_all(downs: Sequence[nn.Linear], precision: str) -> ByNeuron:
    """The same of down projections; the output scales are [layers, d]."""
    if all(isinstance(down, StoredLinear) for down in downs):
        parts = [neurons_of(down, precision) for down in downs]
        codes = side_by_side([part.codes for part in parts])
        scales = side_by_side([part.block_scales for part in parts])
        if codes is not None and scales is not None:
            return ByNeuron(codes, scales, np.stack([part.output_scales for part in parts]))
    whole = format_of(precision).empty_by_neuron(downs[0].out_features, sum(down.in_features for down in downs))
    begin, output_scales = 0, []
    for down in downs:
        here, neurons = slice(begin, begin + down.in_features), neurons_of(down, precision)
        whole.codes[here], whole.block_scales[here] = neurons.codes, neurons.block_scales
        if isinstance(down, StoredLinear):
            down.stored = ByNeuron(whole.codes[here], whole.block_scales[here], neurons.output_scales)
        output_scales.append(neurons.output_scales)
        begin = here.stop
    return ByNeuron(whole.codes, whole.block_scales, np.stack(output_scales))


def _neurons(lm: LoadedModel) -> tuple[Neurons, np.ndarray]:
    """Every neuron of every layer, and the scales [layers, d] of their outputs."""
    gates, ups = [block.gate for block in lm.blocks if block.gate is not None], [block.up for block in lm.blocks]
    gate, up = _rows_of_all(gates, lm.precision), _rows_of_all(ups, lm.precision)
    down = _neurons_of_all([block.down for block in lm.blocks], lm.precision)
    neurons = Neurons(
        gate.codes,
        up.codes,
        down.codes,
        gate.scales,
        up.scales,
        down.block_scales,
        np.concatenate([_bias(projection) for projection in gates]),
        np.concatenate([_bias(projection) for projection in ups]),
    )
    return neurons, down.output_scales
