"""The captured step of tiny models, as a graph on a card and called eagerly elsewhere, against transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from gpu_device import CUDA, DEVICE
from parity import PROMPT_IDS, STEPS
from transformers import DynamicCache

from tda_demo.decode.gpu.graph import CudaGraphEngine, supported
from tda_demo.kernels.gpu.blocks import Tiles
from tda_demo.kernels.gpu.choice import KernelChoice, Way
from tda_demo.kernels.gpu.device import Runner, eager_runner, graph_runner
from tda_demo.kernels.gpu.linear import LinearTiles
from tda_demo.methods import TDA
from tda_demo.model.feedforward import find_blocks
from tda_demo.model.loading import LoadedModel

PROMPT = [*PROMPT_IDS, 21, 22]  # 14 tokens, so that two steps later windows of 16 begin to move
SMALL = Tiles(rows=32, down_rows=32, down_columns=32, splits=2)
REST = dataclasses.replace(SMALL, down_columns=64)  # of which one half reads blocks of 64

LINEAR = LinearTiles(rows=64, warps=1)


def on_device(lm: LoadedModel) -> LoadedModel:
    lm.model.to(DEVICE)  # type: ignore[arg-type]
    return dataclasses.replace(lm, device=DEVICE, blocks=find_blocks(lm.model))


def engine_of(
    lm: LoadedModel, dense: Way = "kernels", sparse: Way = "kernels", linear: LinearTiles | None = LINEAR
) -> CudaGraphEngine:
    assert supported(lm)
    make: Callable[..., Runner] = graph_runner if CUDA else eager_runner
    return CudaGraphEngine(
        lm, make, lambda _: KernelChoice(SMALL, SMALL, dense, sparse, {}), lambda _: REST, lambda _: linear
    )


def dense_errors(lm: LoadedModel, dense: Way = "kernels", steps: list[int] = STEPS[:3]) -> float:
    """Largest error of the dense arm over steps, relative to the largest logit of transformers."""
    engine = engine_of(lm, dense)
    arm = engine.dense_arm(engine.prefill(PROMPT, TDA(cett=0).bind(lm)), len(steps))
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([PROMPT], device=DEVICE), past_key_values=cache)
    worst = 0.0
    for token in steps:
        ids = torch.tensor([[token]], device=DEVICE)
        expected = lm.model(input_ids=ids, past_key_values=cache).logits[0, -1].float()
        worst = max(worst, float((arm.step(token) - expected).abs().max() / expected.abs().max()))
    return worst
