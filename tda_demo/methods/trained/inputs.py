"""What goes into every block, on the text that is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from ...model.feedforward import FeedForward
from ...model.hooks import between
from ...support.lazy import inference_mode, torch
from ...support.progress import Progress, Report

if TYPE_CHECKING:
    from ...model.loading import LoadedModel


@inference_mode
def block_inputs(lm: LoadedModel, texts: Sequence[list[int]], report: Report) -> list[torch.Tensor]:
    """The inputs of every layer's block at every token of ``texts``, float16 [tokens, d], in main memory."""
    seen: list[list[torch.Tensor]] = [[] for _ in lm.blocks]

    def see(block: FeedForward, x: torch.Tensor, _activations: torch.Tensor) -> None:
        seen[block.layer].append(x.to("cpu", torch.float16))

    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(between(block, partial(see, block)))
        for done, ids in enumerate(texts):
            report(Progress("Reading text to train on", done, len(texts), "texts"))
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False, logits_to_keep=1)
    return [torch.cat(layer) for layer in seen]
