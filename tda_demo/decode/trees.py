"""Module trees over one model's weights: a second one, one with fewer neurons, and what a step reads of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from ..feedforward import find_blocks
from ..kernels.reference import limit
from ..methods.base import ActiveSets
from ..placement import hooks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers: hooks and packed weights put in it stay in it."""
    shared = [*model.parameters(), *model.buffers(), *_quantisation(model), *_elsewhere(model), model.config]
    return copy.deepcopy(model, {id(item): item for item in shared})


def _quantisation(model: PreTrainedModel) -> list[Any]:
    """What bitsandbytes keeps beside a quantised matrix: scales, and of int8 the matrix itself."""
    modules: list[Any] = list(model.modules())
    eight_bit = [module for module in modules if hasattr(module, "init_8bit_state")]
    for module in eight_bit:
        if module.weight.CB is not None:  # its first forward pass would move them out of the shared parameter
            module.init_8bit_state()
    four_bit = [module for module in modules if hasattr(module, "quant_state")]
    return [*(module.quant_state for module in four_bit), *(module.state for module in eight_bit)]


def _elsewhere(model: PreTrainedModel) -> list[Any]:
    """Where accelerate's hooks find the weights that are not in the model."""
    found = [hook for module in model.modules() for hook in hooks(module)]
    return [*(hook.weights_map for hook in found), *(hook.tied_params_map for hook in found)]


def restrict(model: PreTrainedModel, active: ActiveSets) -> None:
    """Limits every block of ``model`` that does not keep all its neurons to those it keeps."""
    for block, indices in zip(find_blocks(model), active.indices, strict=True):
        if len(indices) < block.d_ff:
            limit(block, indices)


def bytes_per_step(model: PreTrainedModel) -> int:
    """Weight bytes one step reads: each parameter once, of an embedding table that is not the head one row."""
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = {id(table) for table in tables if head is None or table is not head.weight}
    read = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in looked_up)
    return read + sum(table[0].nbytes for table in tables)
