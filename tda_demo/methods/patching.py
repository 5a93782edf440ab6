"""A model that decodes under a policy: hooks on the transformers model itself, gone when the context ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from ..model.feedforward import FeedForward
from ..model.hooks import intercept, observe
from ..support.errors import UserError
from ..support.lazy import nn, torch
from .plan import PlanSchedule
from .policy import Policy, PromptReader

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


@contextmanager
def patch_model(lm: LoadedModel, policy: Policy) -> Iterator[None]:
    """Within the context a prompt (a call on an empty cache) runs dense; later calls run under the plan it leads to."""
    with ExitStack() as installed:
        session = _Session(lm, policy, installed)
        hooks = [
            lm.model.register_forward_pre_hook(session.before, with_kwargs=True),
            lm.model.register_forward_hook(session.after, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Session:
    """What was made of the last prompt, and what is ``installed`` in the blocks for the call that comes."""

    def __init__(self, lm: LoadedModel, policy: Policy, installed: ExitStack) -> None:
        self.lm, self.policy, self.installed = lm, policy, installed
        self.reader: PromptReader | None = None  # while a prompt is read
        self.schedule: PlanSchedule | None = None
        self.seen: list[torch.Tensor] = []

    def before(self, _model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.seen.clear()
        texts, tokens = _fed(args, kwargs)
        if texts > 1:
            raise UserError("A method serves one sequence at a time: call the model with batch size 1.")
        cache = kwargs.get("past_key_values")
        if cache is None or cache.get_seq_length() == 0:
            self.installed.close()
            self.reader = self.policy.reader()
            for block in self.lm.blocks:
                self.installed.callback(intercept(block, partial(self._read, self.reader, block)))
        elif self.schedule is not None and self.schedule.cover(tokens):
            self._install()

    def after(self, _model: nn.Module, args: tuple, kwargs: dict, _output: object) -> None:
        if self.reader is not None:
            self.schedule, self.reader = PlanSchedule(self.reader.plan()), None
            self._install()
        elif self.schedule is not None and self.schedule.feed(_fed(args, kwargs)[1], self.seen):
            self._install()

    def _read(self, reader: PromptReader, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        reader.see(block, x[None], activations.reshape(1, len(x), -1))

    def _install(self) -> None:
        assert self.schedule is not None
        self.installed.close()
        self.installed.enter_context(self.schedule.plan.packed(self.lm.blocks))
        if self.schedule.plan.observes:
            self.seen = seen = []
            self.installed.enter_context(observe(self.lm.blocks, lambda _block, a: seen.append(a[None])))


def _fed(args: tuple, kwargs: dict) -> tuple[int, int]:
    """How many texts a call of the model is given, and how many tokens of each, as ids or as embeddings."""
    ids: Any = kwargs.get("input_ids", args[0] if args else None)
    texts, tokens, *_ = (kwargs["inputs_embeds"] if ids is None else ids).shape
    return texts, tokens
