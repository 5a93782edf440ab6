"""What is already computed, kept beside the result while a run lasts, so that a run that is cut off is taken up again.

A record is one line, appended whole; a line torn by a kill does not parse and is computed anew.
"""

from __future__ import annotations

import hashlib
import json
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
        line = json.dumps({"key": self.key, "name": name, "record": record})
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
                if entry["key"] == self.key:
                    self.records[entry["name"]] = entry["record"]
            except (ValueError, TypeError, KeyError):
                continue


def _prefix(result: Path) -> str:
    return f".{result.name}.partial-"
