"""Active sets that are chosen anew while the text is written: a prompt's inertia made adaptive. Ours, for TDA.

Neurons that are not computed cannot be observed. So every N-th step runs dense; its activations enter the running
score, and the sets are chosen anew by the thresholds found for the prompt. The bytes and the time of that step are
counted, and those of packing the new sets. Our reading of how activations enter: the score is a mean over tokens, and a
dense step stands for the N tokens since the last one, so it counts N times.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from ..calibration.cett import strengths
from ..model.feedforward import FeedForward
from ..support.lazy import torch
from .plan import ActiveSets, Plan, UseObserver
from .policy import ActiveSetReader, SequencePolicy


@dataclass(frozen=True, eq=False)
class History:
    """A layer's running score: ``squares`` float32 [d_ff], of strengths summed over ``tokens`` tokens.

    A neuron is active whose root mean square reaches ``limit``; ``norms`` float32 [d_ff] weight the strengths, if any.
    """

    limit: float
    norms: torch.Tensor | None
    squares: torch.Tensor
    tokens: int

    @classmethod
    def of(cls, limit: float, norms: torch.Tensor | None, activations: torch.Tensor) -> History:
        """Of a prompt's ``activations`` [T, d_ff]."""
        return cls(limit, norms, strengths(activations, norms).square().sum(dim=0), len(activations))

    def with_token(self, activations: torch.Tensor, times: int) -> History:
        """With one token's ``activations`` [1, d_ff] counted ``times`` times."""
        squares = self.squares + times * strengths(activations, self.norms).square().sum(dim=0)
        return replace(self, squares=squares, tokens=self.tokens + times)

    def active(self) -> torch.Tensor:
        """Bool [d_ff]."""
        return (self.squares / self.tokens).sqrt() >= self.limit


@dataclass(frozen=True, eq=False)
class RefreshedSets(ActiveSets):
    """Active sets for ``every - 1`` tokens, then a dense step that gives the next ones.

    ``histories`` go with the masks: a layer's (outer) of every text (inner).
    """

    histories: tuple[tuple[History, ...], ...]
    every: int

    @property
    def steps(self) -> int:  # type: ignore[override]
        return self.every - 1

    @property
    def is_dense(self) -> bool:
        """Those that come next may leave neurons out."""
        return False

    def next(self, activations: Sequence[torch.Tensor]) -> Plan:
        return _DenseStep(self)

    def renew(self, activations: Sequence[torch.Tensor]) -> RefreshedSets:
        """After a dense step with these ``activations`` [texts, d_ff] of every layer."""
        histories = tuple(
            tuple(history.with_token(token[None], self.every) for history, token in zip(layer, tokens, strict=True))
            for layer, tokens in zip(self.histories, activations, strict=True)
        )
        masks = tuple(torch.stack([history.active() for history in layer]) for layer in histories)
        return RefreshedSets(masks, histories, self.every)


@dataclass(frozen=True, eq=False)
class _DenseStep(Plan):
    """One token with every neuron, whose activations renew the sets of ``renewing``."""

    renewing: RefreshedSets

    steps = 1
    observes = True

    def on(self, blocks: Iterable[FeedForward], see: UseObserver | None = None) -> ExitStack:
        return ActiveSets(tuple(torch.ones_like(mask) for mask in self.renewing.masks)).on(blocks, see)

    def active(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(self.renewing.masks[block.layer])[:, None]

    def missing_output(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*activations.shape[:-1], block.down.out_features, device=activations.device)

    def next(self, activations: Sequence[torch.Tensor]) -> Plan:
        return self.renewing.renew(activations)


class RenewablePolicy(SequencePolicy):
    """A policy whose score can go on after the prompt."""

    @abstractmethod
    def history(self, block: FeedForward, activations: torch.Tensor) -> History:
        """The running score after the prompt with these ``activations`` [T, d_ff]; called after ``select`` for it."""


class RefreshingPolicy(SequencePolicy):
    """Chooses as ``policy`` does, and anew every so many tokens."""

    settles = False

    def __init__(self, policy: RenewablePolicy, every: int) -> None:
        self.policy, self.every = policy, every

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return self.policy.select(block, activations)

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.policy.count_fired(block, activations, computed)

    def reader(self) -> ActiveSetReader:
        return _RefreshingReader(self)


class _RefreshingReader(ActiveSetReader):
    def __init__(self, policy: RefreshingPolicy) -> None:
        super().__init__(policy)
        self.renewable, self.every = policy.policy, policy.every
        self.histories: list[tuple[History, ...]] = []
        self._texts: list[History] = []

    def see(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> None:
        super().see(block, x, activations)
        self.histories.append(tuple(self._texts))
        self._texts = []

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        mask = super().select(block, activations)
        self._texts.append(self.renewable.history(block, activations))
        return mask

    def plan(self) -> Plan:
        return RefreshedSets(tuple(self.masks), tuple(self.histories), self.every)
