"""One run over several processes, as ``accelerate launch`` and ``torchrun`` start them: a share of the work each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shard:
    """Process ``rank`` of ``world``; ``device`` is the one it should use, None where any will do."""

    rank: int = 0
    world: int = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def mine(self, unit: int) -> bool:
        return unit % self.world == self.rank

    def gather(self, parts: list[Any]) -> list[Any]:
        """The lists of all processes as one, on every process; picklable things, in the order of the ranks."""
        if self.world == 1:
            return parts
        from accelerate.utils import gather_object

        return gather_object(parts)


ALONE = Shard()


@contextmanager
def shard(device: str | None = None) -> Iterator[Shard]:
    """This process's share, as its launcher's environment variables say; ``device`` as the user asked for it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Shard(device=device)
        return
    import torch
    from accelerate import PartialState

    on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu)
    try:
        yield Shard(state.process_index, state.num_processes, "cpu" if on_cpu else str(state.device))
    finally:
        state.destroy_process_group()
