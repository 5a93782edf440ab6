"""The contract of a method: WHICH neurons fire. A method is one file and one dataclass of settings.

A sequence-level method looks at the activations of the prompt, which runs dense, and answers with one active set per
layer for the whole generation. A token-level method answers anew at every token (``token``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import UserError
from ..feedforward import FeedForward, observed
from ..later import torch
from ..progress import Report, silent
from .renewal import Choosing, RenewedSets
from .sets import ActiveSets
from .settings import check
from .token import TokenRule

if TYPE_CHECKING:
    from ..models import LoadedModel


Plan = ActiveSets | TokenRule
"""What a sparse arm decodes under once the prompt has been read."""


class Selector(Protocol):
    """A sequence-level method bound to one model: everything it needs to choose."""

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        """The active set as bool [d_ff], from the prompt's ``activations`` [T, d_ff]."""
        ...

    def fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        """How many neurons fire at each token, int64 [T]: those whose activation at that token reaches the threshold.

        ``activations`` [T, k] holds the neurons ``computed`` int64 [k] (None: all of them).
        """
        ...


@dataclass(frozen=True)
class Dial:
    """The one setting that trades quality for bytes: monotone from ``dense``, which is exact, to ``sparsest``."""

    setting: str
    dense: float
    sparsest: float


@dataclass(frozen=True)
class Method(ABC):
    """Settings of a method. ``with method(model):`` patches on entry and restores on exit, after an exception too."""

    name: ClassVar[str]
    dial: ClassVar[Dial]
    leaves_out: ClassVar[str] = "of the MLP neurons"  # what the sparsity of a race under it is a share of
    is_control: ClassVar[bool] = False  # chooses blindly: what every other method has to beat

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        check(self)

    @abstractmethod
    def bind(self, lm: LoadedModel, report: Report = silent) -> Selector | TokenRule:
        """A selector or, of a token-level method, a rule for ``lm``; may calibrate on first use, telling ``report``.

        Raises:
            UserError: a setting is out of its range or does not fit the model.
        """

    def settings(self) -> dict[str, Any]:
        return asdict(self)

    @contextmanager
    def __call__(self, lm: LoadedModel) -> Iterator[LoadedModel]:
        """Within the context a prompt (a call on an empty cache) runs dense and chooses the neurons of later calls."""
        with _patched(lm, self.bind(lm)):
            yield lm


@contextmanager
def _patched(lm: LoadedModel, chooser: Selector | TokenRule) -> Iterator[None]:
    with ExitStack() as installed:
        reading: Choosing | None = None  # the prompt, while it is read
        plan: Plan = ActiveSets((), ())
        fed = 0  # tokens since the prompt
        seen: list[torch.Tensor] | None = None  # activations of a step that runs dense to renew the plan

        def before(_model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            nonlocal reading, fed, seen
            if _is_prompt(args, kwargs):
                installed.close()
                reading, fed = Choosing(chooser), 0
                if not isinstance(chooser, TokenRule):
                    installed.enter_context(observed(lm.blocks, reading.see))
            elif isinstance(plan, RenewedSets) and reading is None:
                fed, last = fed + _ids(args, kwargs).shape[1], fed
                if fed // plan.every > last // plan.every:
                    installed.close()
                    found = seen = []
                    installed.enter_context(observed(lm.blocks, lambda _block, a: found.append(a[-1:])))

        def after(*_: object) -> None:
            nonlocal reading, plan, seen
            if reading is not None:
                plan, reading = chooser if isinstance(chooser, TokenRule) else reading.sets(), None
            elif seen is not None and isinstance(plan, RenewedSets):
                plan, seen = plan.renewed(seen), None
            else:
                return
            installed.close()
            installed.enter_context(plan.on(lm.blocks))

        hooks = [
            lm.model.register_forward_pre_hook(before, with_kwargs=True),
            lm.model.register_forward_hook(after),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _is_prompt(args: tuple, kwargs: dict) -> bool:
    ids = _ids(args, kwargs)
    if ids is not None and ids.shape[0] > 1:
        raise UserError("A method serves one sequence at a time: call the model with batch size 1.")
    cache = kwargs.get("past_key_values")
    return cache is None or cache.get_seq_length() == 0


def _ids(args: tuple, kwargs: dict) -> Any:
    return kwargs.get("input_ids", args[0] if args else None)
