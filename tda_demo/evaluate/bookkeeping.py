"""Long runs: over several processes, a share of the work each, and taken up again where they were cut off.

What is already computed is kept beside the result while a run lasts. A record is one line, appended whole, with a sum
of what it says; a line torn by a kill does not parse, one that has changed does not match: both are computed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.errors import UserError


def digest(content: Any) -> str:
    """A hex id of anything JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Ledger:
    """Records of one run by name. ``key`` says all that they depend on: a record of another key is not found.

    Each of several processes (``rank``) appends to a file of its own and reads those of all; ``result`` None keeps
    nothing.
    """

    def __init__(self, result: Path | None, key: str, rank: int = 0) -> None:
        self.result = result
        self.key = key
        self.rank = rank
        self.records: dict[str, Any] = {}
        for path in self._files():
            self._load(path)

    def get(self, name: str) -> Any | None:
        return self.records.get(name)

    def put(self, name: str, record: Any) -> None:
        """Keeps ``record``, which JSON must be able to say.

        Raises:
            UserError: the file cannot be written.
        """
        self.records[name] = record
        if self.result is None:
            return
        path = self.result.with_name(f"{_prefix(self.result)}{self.rank}")
        entry = {"key": self.key, "name": name, "record": record}
        line = json.dumps({**entry, "sum": digest(entry)})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\n{line}\n")  # the line break first: what stands before may be torn
        except OSError as error:
            raise UserError(f"Cannot write {path}: {error.strerror}.") from error

    def discard(self) -> None:
        """Removes every process's file: the result is written."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        if self.result is None or not self.result.parent.is_dir():
            return []
        prefix = _prefix(self.result)
        return sorted(path for path in self.result.parent.iterdir() if path.name.startswith(prefix))

    def _load(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known = entry.pop("sum")
                if entry["key"] == self.key and digest(entry) == known:
                    self.records[entry["name"]] = entry["record"]
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue


def _prefix(result: Path) -> str:
    return f".{result.name}.partial-"


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
