"""Active sets: which neurons of every layer a sequence-level method computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from ..feedforward import FeedForward
from ..kernels.reference import limit
from ..later import torch


@dataclass(frozen=True, eq=False)
class ActiveSets:
    """The neurons to compute: sorted int64 ``indices`` and the block width ``d_ff``, one entry per layer."""

    indices: tuple[torch.Tensor, ...]
    d_ff: tuple[int, ...]

    @classmethod
    def of(cls, masks: Sequence[torch.Tensor]) -> ActiveSets:
        """The neurons that bool ``masks`` [d_ff] mark, one mask per layer."""
        return cls(tuple(mask.nonzero().squeeze(1) for mask in masks), tuple(len(mask) for mask in masks))

    def counts(self) -> list[int]:
        return [len(chosen) for chosen in self.indices]

    def sparsity(self) -> list[float]:
        """``1 - |active set| / d_ff`` per layer, 0..1."""
        return [1 - count / width for count, width in zip(self.counts(), self.d_ff, strict=True)]

    @contextmanager
    def on(self, blocks: Iterable[FeedForward]) -> Iterator[None]:
        """Within the context the blocks compute these neurons only."""
        with ExitStack() as restorations:
            for block, indices in zip(blocks, self.indices, strict=True):
                if len(indices) < block.d_ff:
                    restorations.callback(limit(block, indices))
            yield
