"""The contract of an engine: what runs a model, in two arms from one prompt."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch

from ..methods.policy import Policy
from ..model.feedforward import FeedForward, find_blocks
from ..model.hooks import intercept
from ..support.errors import UserError
from ..support.progress import Report, silent
from .arm import Arm, Prefill
from .shared_model import forward, now_ms, share_weights
from .weight_bytes import StepBytes

if TYPE_CHECKING:
    from transformers import Cache

    from ..model.loading import LoadedModel

See = Callable[[FeedForward, torch.Tensor, torch.Tensor], None]
"""What looks at a block as it runs: at its input [T, d] and its activations [..., T, d_ff]."""


class Engine(ABC):
    """Runs a model. Nothing it does is visible to another engine of the same model, so races may run in parallel."""

    name: str

    def __init__(self, lm: LoadedModel) -> None:
        self.lm = lm

    @classmethod
    def runs(cls, policy: Policy) -> bool:
        """Whether its sparse arm can decode under what ``policy`` plans."""
        return True

    @cached_property
    def step_bytes(self) -> StepBytes:
        """The weight bytes that its arms read."""
        return self._count_bytes()

    @property
    def fewer_bits(self) -> dict[str, int]:
        """By nearly exact precisions that this engine could run instead: the fewer bytes a dense step reads in them."""
        return {}

    @abstractmethod
    def _count_bytes(self) -> StepBytes:
        """``step_bytes``, counted once."""

    @torch.inference_mode()
    def warm_up(self, report: Report = silent, policy: Policy | None = None) -> None:
        """Runs what is slow only once (thread pools, compilation), so that it falls outside every timing.

        A token-level ``policy`` has a kernel of its own to compile. Here a short prompt runs in transformers; engines
        add what else is slow in them.
        """
        from transformers import DynamicCache

        token = min(self.lm.eos_ids, default=0)
        forward(self.lm.model, DynamicCache(config=self.lm.model.config), [token] * 8, self.lm.device)

    def prefill(self, ids: list[int], policy: Policy) -> Prefill:
        """The prompt ``ids``, read dense: in transformers, where the engine has nothing faster."""
        return self.prefills(ids, [policy])[0]

    @torch.inference_mode()
    def prefills(self, ids: list[int], policies: Sequence[Policy]) -> list[Prefill]:
        """One pass over the prompt that all ``policies`` look at: a prefill each, of the same logits and cache.

        Raises:
            UserError: the model's logits are no numbers.
        """
        device = self.lm.device
        watches = [_Watch(policy, device) for policy in policies]

        def see(block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
            for watch in watches:
                watch.see(block, x, activations)

        logits, cache, total = self._read(ids, see)
        if logits.isnan().any():
            raise UserError(
                f"{self.lm.name} in {self.lm.precision} computes no numbers (NaN) for this prompt: choose another "
                "precision or another model."
            )
        prefill_ms = total - sum(watch.selection_ms + watch.diagnostics_ms for watch in watches)
        return [
            Prefill(
                tokens=len(ids),
                logits=logits,
                cache=cache,
                plan=watch.reader.plan(),
                fired=torch.stack([fired.to(device) for fired in watch.fired], dim=1),
                prefill_ms=prefill_ms,
                selection_ms=watch.selection_ms,
            )
            for watch in watches
        ]

    def _read(self, ids: list[int], see: See) -> tuple[torch.Tensor, Cache, float]:
        """The logits after the prompt ``ids``, its keys and values, and how many ms that took, ``see`` included."""
        from transformers import DynamicCache

        device, model = self.lm.device, share_weights(self.lm.model)
        cache = DynamicCache()  # without a config, so that sliding-window layers keep every position too
        with ExitStack() as hooks:
            for block in find_blocks(model):
                hooks.callback(intercept(block, partial(see, block)))
            begin = now_ms(device)
            logits = forward(model, cache, ids, device, last_only=True)[0]
            return logits, cache, now_ms(device) - begin

    @abstractmethod
    def dense_arm(self, prefill: Prefill, room: int) -> Arm:
        """An arm that has read the prompt and may take ``room`` steps."""

    @abstractmethod
    def sparse_arm(self, prefill: Prefill, room: int) -> Arm:
        """The same under the prefill's plan."""

    def judging_arm(self, prefill: Prefill, room: int) -> Arm | None:
        """A sparse arm to be fed the dense arm's text, by which a race is judged step by step.

        None where it computes what transformers computes under the plan, and not faster: passes over many tokens at
        once then say the same.
        """
        return None


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
