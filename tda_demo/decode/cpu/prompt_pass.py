"""A prompt read by the compiled layers, for models held in the formats that have products of many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...kernels.cpu import most_threads, turn
from ...kernels.cpu.launch import ParallelCall, run_at_once
from ...kernels.cpu.matmul import (
    neurons_have_matmul,
    outputs_of,
    room_by_neuron,
    room_by_row,
    rows_have_matmul,
    tokens_of,
)
from ...kernels.cpu.prompt import PromptLayer, PromptScratch, take_layer
from ...support.interruption import look
from ..engine import See
from .layout import Layout, rope_tables

if TYPE_CHECKING:
    from transformers import Cache

    from ...model.loading import LoadedModel


def reads_prompts(layout: Layout) -> bool:
    """Whether ``read_prompt`` can: every matrix has a product of many tokens, and all blocks are of one width."""
    shared, neurons = layout.shared, layout.neurons
    widths = set(np.diff(layout.first).tolist())
    rows = (shared.qkv[0], shared.out[0], neurons.gate, neurons.up)
    down = neurons.down[layout.first[0] : layout.first[1]]
    return len(widths) == 1 and all(map(rows_have_matmul, rows)) and neurons_have_matmul(down)


@torch.inference_mode()
def read_prompt(lm: LoadedModel, layout: Layout, ids: list[int], see: See) -> tuple[torch.Tensor, Cache]:
    """The logits float32 [vocabulary] after the last of ``ids``, and all keys and values.

    ``see`` looks at every block as it runs; the memory of what it is given is the next one's too.

    Raises:
        UserError: the threads do not run at once here.
        GivenUp: the work has been given up.
    """
    from transformers import DynamicCache

    shape, tokens = layout.shape, len(ids)
    threads = min(torch.get_num_threads(), most_threads())
    embedded: torch.Tensor = lm.model.get_input_embeddings()(torch.tensor([ids]))
    x = embedded[0].float().numpy().copy()
    number = np.zeros(1, np.int64)
    keys = np.empty((len(lm.blocks), shape.kv_heads, tokens, shape.head_dim), np.float32)
    arguments = _arguments(lm, layout, number, x, keys, np.empty_like(keys), threads)
    normed, d_ff = torch.from_numpy(arguments.normed), int(layout.first[1])
    activations = torch.from_numpy(arguments.activations)[:tokens, :d_ff]
    with turn(threads):
        take = ParallelCall(take_layer, arguments, threads)
    cache = DynamicCache()
    for block in lm.blocks:
        look()
        number[0] = block.layer
        with turn(threads):
            run_at_once(take)
        see(block, normed, activations)
        layer = slice(block.layer, block.layer + 1)
        own_keys, own_values = torch.from_numpy(arguments.keys[layer]), torch.from_numpy(arguments.values[layer])
        cache.update(own_keys, own_values, block.layer)
        held: Any = cache.layers[block.layer]
        held.keys, held.values = own_keys, own_values  # in place of copies
    return torch.from_numpy(arguments.logits), cache


def _arguments(
    lm: LoadedModel,
    layout: Layout,
    number: np.ndarray,
    x: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    threads: int,
) -> PromptLayer:
    shape, shared, neurons, tokens = layout.shape, layout.shared, layout.neurons, len(x)
    hidden, mixed = room_by_row(shared.qkv[0], tokens), room_by_row(shared.out[0], tokens)
    active = room_by_neuron(neurons.down[layout.first[0] : layout.first[1]], tokens)
    cosines, sines = rope_tables(lm.model, tokens)
    return PromptLayer(
        layer=number,
        shape=shape,
        shared=shared,
        neurons=neurons,
        first=layout.first,
        cosines=cosines,
        sines=sines,
        keys=keys,
        values=values,
        x=x,
        normed=np.empty_like(x),
        activations=np.zeros((tokens_of(tokens), outputs_of(int(layout.first[1]))), np.float32),
        logits=np.empty(len(shared.head_scale), np.float32),
        scratch=PromptScratch.of(shape, hidden, mixed, active, x.shape[1], tokens, threads),
    )
