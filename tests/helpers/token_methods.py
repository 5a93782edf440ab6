"""Token-level methods bound to tiny models, and what their blocks are given."""

from __future__ import annotations

from typing import cast

import torch
from parity import PROMPT_IDS

from tda_demo.methods import CATS, TT, Method, Sketch, TokenPolicy
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.hooks import intercept
from tda_demo.model.loading import LoadedModel

HALF: dict[str, Method] = {"sketch": Sketch(keep=0.5), "cats": CATS(keep=0.5), "tt": TT(cett=0.1)}
LIKE_LLAMA = "llama"


def rule_of(lm: LoadedModel, name: str) -> TokenPolicy:
    return cast(TokenPolicy, HALF[name].bind(lm))


def inputs(lm: LoadedModel) -> list[tuple[FeedForward, torch.Tensor, torch.Tensor]]:
    """What every block sees of the prompt: its input [T, d] and its activations [T, d_ff]."""
    seen = []
    undo = [intercept(block, lambda x, a, at=block: seen.append((at, x, a.view(len(x), -1)))) for block in lm.blocks]
    lm.model(input_ids=torch.tensor([PROMPT_IDS]))
    for each in undo:
        each()
    return seen
