"""The contract of a method: WHICH neurons fire. A method is one file and one dataclass of settings.

A sequence-level method looks at the activations of the prompt, which runs dense, and answers with one active set per
layer for the whole generation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from ..errors import UserError
from ..feedforward import FeedForward, observed
from ..kernels.reference import limit
from ..later import torch
from ..progress import Report, silent
from .settings import check

if TYPE_CHECKING:
    from ..models import LoadedModel


@dataclass(frozen=True, eq=False)
class ActiveSets:
    """The neurons to compute: sorted int64 ``indices`` and the block width ``d_ff``, one entry per layer."""

    indices: tuple[torch.Tensor, ...]
    d_ff: tuple[int, ...]

    def counts(self) -> list[int]:
        return [len(chosen) for chosen in self.indices]

    def sparsity(self) -> list[float]:
        """``1 - |active set| / d_ff`` per layer, 0..1."""
        return [1 - count / width for count, width in zip(self.counts(), self.d_ff, strict=True)]


class Selector(Protocol):
    """A method bound to one model: everything it needs to choose."""

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

    def __post_init__(self) -> None:
        """Raises UserError where a setting is out of its range."""
        check(self)

    @abstractmethod
    def bind(self, lm: LoadedModel, report: Report = silent) -> Selector:
        """A selector for ``lm``; may calibrate on first use, telling ``report`` how far it is.

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
def _patched(lm: LoadedModel, selector: Selector) -> Iterator[None]:
    with ExitStack() as restorations:
        chosen: list[torch.Tensor] = []

        def before(_model: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            if _is_prompt(args, kwargs):
                restorations.close()
                chosen.clear()
                restorations.enter_context(
                    observed(lm.blocks, lambda block, a: chosen.append(selector.select(block, a)))
                )

        def after(*_: object) -> None:
            if chosen:
                restorations.close()
                for block, mask in zip(lm.blocks, chosen, strict=True):
                    if not mask.all():
                        restorations.callback(limit(block, mask.nonzero().squeeze(1)))
                chosen.clear()

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
    ids = kwargs.get("input_ids", args[0] if args else None)
    if ids is not None and ids.shape[0] > 1:
        raise UserError("A sequence-level method serves one sequence at a time; call the model with batch size 1.")
    cache = kwargs.get("past_key_values")
    return cache is None or cache.get_seq_length() == 0
