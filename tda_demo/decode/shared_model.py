"""A model's weights run by transformers: a second module tree over them, one pass through it, and its clock."""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..kernels.gpu.device import finish
from ..model.feedforward import transfer_hooks
from ..model.stored import stored_codes

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

    from ..model.loading import LoadedModel

_UNCHANGING = (bool, int, float, str, type(None), torch.dtype, torch.device)


def share_weights(model: PreTrainedModel) -> PreTrainedModel:
    """A second module tree over the same parameters and buffers: hooks and packed weights put in it stay in it."""
    shared: list[Any] = [*model.parameters(), *model.buffers(), *_quantisation(model), *_elsewhere(model), model.config]
    shared += stored_codes(model)
    return _twin(model, {id(item): item for item in shared})


def _twin(module: nn.Module, known: dict[int, Any]) -> Any:
    """What ``copy.deepcopy`` gives, whose memory ``known`` is, in 11 ms for 400 modules instead of 70.

    Nearly all that modules have is empty or never changes.
    """
    if id(module) in known:
        return known[id(module)]
    kind = type(module)
    if hasattr(kind, "__deepcopy__") or kind.__setstate__ is not nn.Module.__setstate__:
        return copy.deepcopy(module, known)
    twin = object.__new__(kind)
    known[id(module)] = twin
    attributes = vars(twin)
    for name, value in vars(module).items():
        if name == "_modules":
            attributes[name] = {key: child if child is None else _twin(child, known) for key, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            attributes[name] = dict(value)
        elif isinstance(value, _UNCHANGING):
            attributes[name] = value
        elif isinstance(value, dict | list | set) and not value:
            attributes[name] = type(value)()
        else:
            attributes[name] = copy.deepcopy(value, known)
    return twin


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
    offloading = [hook for module in model.modules() for hook in transfer_hooks(module)]
    return [*(hook.weights_map for hook in offloading), *(hook.tied_params_map for hook in offloading)]


def forward(
    model: PreTrainedModel, cache: Cache, ids: list[int], device: torch.device, *, last_only: bool = False
) -> torch.Tensor:
    """Logits float32 [positions, vocabulary]; ``last_only`` gives one position."""
    tokens = torch.tensor([ids], device=device)
    output = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1 if last_only else 0)
    return output.logits[0].float()


@torch.inference_mode()
def modules_of_a_step(lm: LoadedModel) -> list[tuple[str, nn.Module]]:
    """The modules that one token runs through, with their names: a multimodal model has others too.

    Nothing is multiplied for that: a large model's weights would all be read, and a kernel compiled.
    """
    from transformers import DynamicCache

    model = share_weights(lm.model)
    ran: set[str] = set()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: ran.add(name))
        if isinstance(module, nn.Linear):
            setattr(module, "forward", partial(_zeros, module.out_features))  # noqa: B010 (a method is replaced)
    forward(model, DynamicCache(), [0], lm.device)
    return [(name, module) for name, module in lm.model.named_modules() if name in ran]


def _zeros(width: int, input: torch.Tensor) -> torch.Tensor:
    return input.new_zeros(*input.shape[:-1], width)


def now_ms(device: torch.device) -> float:
    """Milliseconds, once ``device`` has finished."""
    finish(device)
    return time.perf_counter() * 1e3
