"""Models of random weights on the device itself, in a float dtype or quantised to NF4."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..decode.shared_model import share_weights
from ..model.feedforward import find_blocks
from ..model.loading import LoadedModel

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Weights as the family initialises them; without a tokenizer that could read text."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.eval().requires_grad_(False)
    no_tokenizer: Any = SimpleNamespace(eos_token_id=None)
    return LoadedModel(
        name="random weights",
        fingerprint="",
        model=model,
        tokenizer=no_tokenizer,
        precision=str(dtype).removeprefix("torch."),
        device=device,
        blocks=find_blocks(model),
    )


def to_nf4(lm: LoadedModel) -> LoadedModel:
    """``lm`` with every linear but the head in bitsandbytes' NF4; the rest is shared with it."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    model: Any = share_weights(lm.model)
    head = model.get_output_embeddings()
    linears = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, linear in linears:
        if linear is head:
            continue
        with torch.device("meta"):
            quantised = Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=False,
                compute_dtype=linear.weight.dtype,
                compress_statistics=False,
                quant_type="nf4",
            )
        settings: Any = {"compress_statistics": False, "quant_type": "nf4", "module": quantised}
        weight: Any = Params4bit(linear.weight.data.contiguous(), **settings)
        quantised.weight = weight.to(lm.device)
        quantised.bias = linear.bias
        model.set_submodule(name, quantised)
    return dataclasses.replace(lm, model=model, precision="nf4", blocks=find_blocks(model))


QUANTISED: dict[str, Callable[[LoadedModel], LoadedModel]] = {"nf4": to_nf4}
PRECISIONS = ("bfloat16", *QUANTISED)
"""What shapes are measured in: in a float dtype, then quantised from that."""
