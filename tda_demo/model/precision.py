"""What a precision means on each device.

On a GPU it is the dtype of the model, or the storage that bitsandbytes gives its matrices (NF4, LLM.int8). On a CPU it
is how weights are stored and read by the compiled kernels; the transformers model, which reads prompts, holds the same
rounded values in float32, so both compute the same function.
"""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..kernels.formats import round_by_neuron, round_by_row
from .feedforward import find_blocks
from .precisions import PRECISIONS, REFERENCE, Device, default_precision, precision_of, precisions_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def offered(device: str | None) -> tuple[str, ...]:
    """The precisions of ``device`` (``cpu``, ``cuda``), or of the one a model is loaded on where none is named."""
    on_gpu = torch.cuda.is_available() if device is None else device.startswith("cuda")
    return precisions_on("cuda" if on_gpu else "cpu")


def choose(asked: str | None, device: torch.device) -> str:
    """``asked``, or the device's default: what a sensible person would run there.

    Raises:
        UserError: there is no such precision, or not on this device.
    """
    kind: Device = "cuda" if device.type == "cuda" else "cpu"
    if asked is not None:
        return precision_of(asked, kind).name
    return REFERENCE if kind == "cuda" and not _has_bfloat16() else default_precision(kind)


def model_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the transformers model: under bitsandbytes of what it computes with and does not quantise.

    That is bfloat16, or float16 on cards before Ampere, which only emulate bfloat16.
    """
    if device.type == "cpu":
        return torch.float32
    if dtype := PRECISIONS[precision].dtype:
        return getattr(torch, dtype)
    return torch.bfloat16 if _has_bfloat16() else torch.float16


def loading(precision: str, device: torch.device) -> dict[str, Any]:
    """What ``from_pretrained`` needs to know beside the dtype: on a GPU bitsandbytes quantises while loading."""
    settings = PRECISIONS[precision].bitsandbytes
    if device.type == "cpu" or settings is None:
        return {}
    from transformers import BitsAndBytesConfig

    # Its int8 product warns at every call, within every timing, that it rounds its input, which it is there to do.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    config = BitsAndBytesConfig(**settings(model_dtype(precision, device)))
    return {"quantization_config": config, "device_map": {"": device}}


def give_back_memory() -> None:
    """Frees what models that nothing uses any more still hold, on a GPU too.

    bitsandbytes' 4-bit weights and their modules hold each other, so they do not go with the last use.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 itself."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def head_format(precision: str) -> str:
    """The format of the output head on a CPU."""
    return PRECISIONS[precision].head_format


@torch.no_grad()
def round_weights(model: PreTrainedModel, precision: str) -> None:
    """Rounds every matrix of a float32 model to what the kernels' format holds.

    Norms and biases stay float32, as in the kernels.
    """
    if precision == REFERENCE:
        return
    downs = {block.down for block in find_blocks(model)}
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            store = round_by_neuron if module in downs else round_by_row
            kind = head_format(precision) if module is head else precision
            module.weight.data = store(module.weight, kind)  # of the parameter, which an embedding may share
