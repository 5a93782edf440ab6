"""Engines against transformers itself on tiny models: what the tests of each engine share."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import torch
from tiny import tiny
from transformers import AutoModelForCausalLM, DynamicCache

from tda_demo.decode.choose import engine_for
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.decode.cpu.prompt_cache import number_type
from tda_demo.decode.engine import Engine
from tda_demo.methods import TDA, ActiveSets
from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel
from tda_demo.model.precision import round_weights
from tda_demo.stats import metrics

PROMPT_IDS = list(range(5, 17))
# The largest error allowed beside transformers with the same rounded weights: products take a vector's elements to 16
# bits (int8), 14 (nf4) or 8 (q4), which in these narrow models (32 columns) does not average out.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-5, "int8": 5e-4, "q4": 5e-2, "nf4": 3e-3}
STEPS = [5 + 7 * i % 90 for i in range(30)]  # with the prompt well beyond the sliding windows of 16


def stored(lm: LoadedModel, precision: str) -> LoadedModel:
    round_weights(lm.model, precision)
    return dataclasses.replace(lm, precision=precision)


def of_config(config: Any) -> LoadedModel:
    lm = tiny("llama")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.normal_(std=0.2)
    return dataclasses.replace(lm, model=model, blocks=find_blocks(model))


def logits_in_floats(lm: LoadedModel, ids: torch.Tensor) -> torch.Tensor:
    """Float32 logits of ``ids`` int64 [1, T] by torch alone: compiled code computes nothing that has a gradient."""
    with torch.enable_grad():
        embeddings = lm.model.get_input_embeddings()(ids).requires_grad_()
        return lm.model(inputs_embeds=embeddings).logits.detach()


def random_sets(lm: LoadedModel, counts: tuple[int, ...]) -> ActiveSets:
    random = torch.Generator().manual_seed(1)
    widths = tuple(block.d_ff for block in lm.blocks)
    orders = [torch.randperm(width, generator=random) for width in widths]
    return ActiveSets.from_indices(
        tuple(each[:k].sort().values for each, k in zip(orders, counts, strict=True)), widths
    )


def reading_in_transformers(engine: Engine) -> Engine:
    """The engine itself, whose prompts are read without any rounding from now on: what is tested is a step."""
    setattr(engine, "_read", partial(Engine._read, engine))  # noqa: B010 (a method is replaced)
    return engine


def worst_error(lm: LoadedModel, expected_engine: type[Engine]) -> float:
    """Largest error of the dense arm over steps, relative to the largest logit."""
    engine = reading_in_transformers(engine_for(lm))
    assert type(engine) is expected_engine
    arm = engine.dense_arm(engine.prefill(PROMPT_IDS, TDA(cett=0).bind(lm)), len(STEPS))
    cache = prompt_cache(lm, number_type(lm.precision) if expected_engine is CpuStepEngine else np.float32)
    worst = 0.0
    for token in STEPS:
        expected = lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        worst = max(worst, float((arm.step(token) - expected).abs().max() / expected.abs().max()))
    return worst


def prompt_cache(lm: LoadedModel, kind: type[np.generic] = np.float32) -> DynamicCache:
    """That of the prompt, which keeps numbers as an arm of this ``kind`` does: in half precision, or as they are."""
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([PROMPT_IDS]), past_key_values=cache)
    if kind == np.float32:
        return cache
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys.half().float(), layer.values.half().float()
        layer.update = partial(_update_with_halves, layer.update)
    return cache


def _update_with_halves(update: Any, keys: torch.Tensor, values: torch.Tensor, *others: Any, **named: Any) -> Any:
    return update(keys.half().float(), values.half().float(), *others, **named)


def zeroed_logits(lm: LoadedModel, active: ActiveSets, token: int, kind: type[np.generic] = np.float32) -> torch.Tensor:
    """Logits of ``token`` after the prompt, from transformers; zeroes the output columns of the neurons dropped.

    ``kind`` is how the arm keeps keys and values (``prompt_cache``).
    """
    cache = prompt_cache(lm, kind)
    for block, indices in zip(lm.blocks, active.indices, strict=True):
        dropped = torch.ones(block.d_ff, dtype=torch.bool).index_fill(0, indices, False)
        block.down.weight[:, dropped] = 0
    return lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]


def mean_kl(expected: torch.Tensor, logits: torch.Tensor) -> float:
    """KL(expected || logits) in nats per position, both [positions, vocabulary]."""
    return float(metrics.compare_forced(expected, logits, torch.zeros(len(logits), dtype=torch.int64)).kl.mean())
