"""The prompt, read dense in transformers for every engine, while policies look at it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from ..methods.policy import Policy
from ..model.feedforward import FeedForward, find_blocks
from ..model.hooks import intercept
from .arm import Prefill
from .trees import forward, now_ms, share_weights

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@torch.inference_mode()
def read_prompt(lm: LoadedModel, ids: list[int], policies: Sequence[Policy]) -> list[Prefill]:
    """One pass over the prompt that all ``policies`` look at: a prefill each, of the same logits and cache."""
    from transformers import DynamicCache

    model = share_weights(lm.model)
    watches = [_Watch(policy, lm.device) for policy in policies]
    cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
    with ExitStack() as hooks:
        for block in find_blocks(model):
            for watch in watches:
                hooks.callback(intercept(block, partial(watch.see, block)))
        begin = now_ms(lm.device)
        logits = forward(model, cache, ids, lm.device, last_only=True)[0]
        total = now_ms(lm.device) - begin
    prefill_ms = total - sum(watch.selection_ms + watch.diagnostics_ms for watch in watches)
    return [
        Prefill(
            tokens=len(ids),
            logits=logits,
            cache=cache,
            plan=watch.reader.plan(),
            fired=torch.stack([fired.to(lm.device) for fired in watch.fired], dim=1),
            prefill_ms=prefill_ms,
            selection_ms=watch.selection_ms,
        )
        for watch in watches
    ]


@torch.inference_mode()
def warm_up(lm: LoadedModel) -> None:
    """A short prompt, for whatever runs slowly the first time."""
    from transformers import DynamicCache

    token = min(lm.eos_ids, default=0)
    forward(lm.model, DynamicCache(config=lm.model.config), [token] * 8, lm.device)


class _Watch:
    """What a policy makes of a prompt, layer by layer, and how long that takes, in ms."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self.policy = policy
        self.device = device
        self.reader = policy.reader()
        self.fired: list[torch.Tensor] = []
        self.selection_ms = self.diagnostics_ms = 0.0

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        flat, begin = activations.reshape(len(x), -1), now_ms(self.device)
        self.reader.see(block, x[None], flat[None])
        middle = now_ms(self.device)
        self.fired.append(self.policy.count_fired_in_prompt(block, x, flat))
        self.selection_ms += middle - begin
        self.diagnostics_ms += now_ms(self.device) - middle
