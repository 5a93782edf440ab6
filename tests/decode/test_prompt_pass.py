"""Prompts read by the compiled layers against transformers, on the same weights: all that a race starts from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import CONFIGS
from parity import of_config, stored
from tiny import tiny
from transformers import LlamaConfig, Phi3Config

from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.decode.cpu.prompt_pass import reads_prompts
from tda_demo.decode.engine import Engine
from tda_demo.kernels.cpu.processor import HAS_SHUFFLE
from tda_demo.methods import TDA
from tda_demo.model.family import FAMILIES
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.loading import LoadedModel

pytestmark = [
    pytest.mark.usefixtures("two_threads"),
    pytest.mark.skipif(not HAS_SHUFFLE, reason="made of AVX2 instructions"),
]

LAYOUTS = [name for name, config in CONFIGS.items() if FAMILIES[config.model_type].decoder]

Seen = dict[str, torch.Tensor]


def everything(lm: LoadedModel, ids: list[int], read: Any) -> Seen:
    """Logits, keys, values and what every block was given and fired, copied."""
    blocks: Seen = {}

    def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        blocks[f"input {block.layer}"] = x.clone()
        blocks[f"activations {block.layer}"] = activations.reshape(len(x), -1).clone()

    logits, cache, ms = read(ids, see)
    assert ms > 0 and len(blocks) == 2 * len(lm.blocks)
    keys = {f"keys {number}": layer.keys for number, layer in enumerate(cache.layers)}
    values = {f"values {number}": layer.values for number, layer in enumerate(cache.layers)}
    return {"logits": logits, **blocks, **keys, **values}


def check(lm: LoadedModel, precision: str, tokens: int) -> None:
    """Transformers multiplies with the rounded weights in floats; here a vector has 16 bits of its block's largest."""
    lm = stored(stored(lm, precision), precision)  # a few of q4's groups are fitted otherwise once they are rounded
    engine = CpuStepEngine(lm)
    assert reads_prompts(engine.layout)
    ids = [5 + 7 * i % 90 for i in range(tokens)]
    ours = everything(lm, ids, engine._read)
    theirs = everything(lm, ids, lambda ids, see: Engine._read(engine, ids, see))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        assert (ours[name] - expected).abs().max() < 1e-3 * expected.abs().max(), name


@pytest.mark.parametrize("precision", ["int8", "q4"])
@pytest.mark.parametrize("family", LAYOUTS)
def test_every_family_of_the_layout(family: str, precision: str) -> None:
    check(tiny(family), precision, 41)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 100])
def test_prompts_of_any_length(tokens: int) -> None:
    check(tiny("gemma2"), "int8", tokens)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "gelu"},
        {"hidden_act": "relu"},
        {"attention_bias": True, "mlp_bias": True},
        {"tie_word_embeddings": False},
        {"intermediate_size": 34},
        {"num_key_value_heads": 1, "head_dim": 12},
        {"hidden_size": 288, "intermediate_size": 522},  # more than a block of columns that are rounded alike
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["int8", "q4"])
def test_variations_of_llama(changes: dict[str, Any], precision: str) -> None:
    check(of_config(LlamaConfig(**{**CONFIGS["llama"].to_dict(), "head_dim": None, **changes})), precision, 9)


def test_partial_rotary() -> None:
    changes = {"rope_parameters": None, "partial_rotary_factor": 0.5}
    check(of_config(Phi3Config(**{**CONFIGS["phi3"].to_dict(), **changes})), "int8", 9)


@pytest.mark.parametrize(
    ("precision", "changes"),
    [("float32", {}), ("bfloat16", {}), ("nf4", {}), ("int8", {"intermediate_size": 33}), ("int8", {"head_dim": 10})],
)
def test_other_formats_and_odd_sizes_are_read_by_transformers(precision: str, changes: dict[str, int]) -> None:
    lm = stored(of_config(LlamaConfig(**{**CONFIGS["llama"].to_dict(), **changes})), precision)
    engine = CpuStepEngine(lm)
    assert not reads_prompts(engine.layout)
    assert torch.isfinite(engine.prefill([5, 6, 7], TDA(cett=0).bind(lm)).logits).all()
