"""Models of random weights on the device itself, in a float dtype or quantised to NF4.

The configurations of some well-known ones are written out, so that their shapes can be timed without their weights.
"""

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
from ..support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "llama2-7b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
        },
    ),
    "mistral-7b": (
        "mistral",
        {
            "vocab_size": 32768,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32768,
            "sliding_window": None,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "qwen3-4b": (
        "qwen3",
        {
            "vocab_size": 151936,
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 40960,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
}
NAMES = tuple(_SHAPES)


def config_of(name: str) -> PreTrainedConfig:
    """The configuration called ``name``.

    Raises:
        UserError: there is none.
    """
    from transformers import AutoConfig

    if name not in _SHAPES:
        raise UserError(f"There are no shapes '{name}'; there are: {', '.join(NAMES)}.")
    family, fields = _SHAPES[name]
    return AutoConfig.for_model(family, **fields)


def random_model(config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> LoadedModel:
    """Weights as the family initialises them; without a tokenizer that could read text."""
    from transformers import AutoModelForCausalLM

    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = model.eval().requires_grad_(False)
    no_tokenizer: Any = SimpleNamespace(eos_token_id=None, chat_template=None)
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
