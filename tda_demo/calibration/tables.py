"""Tables that take minutes to make for a model: found in the user's cache, else among the shipped files, else made."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..support.files import DATA, cache_root, write_text
from ..support.kept import make_way, read_kept, write_kept

Table = TypeVar("Table")

# What decoding a file and taking it apart can raise where it is missing, damaged or of another shape.
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_MOST, _MOST_BYTES = 128, 256 << 20  # kept in one folder: visitors may choose settings that each have their own


@dataclass(frozen=True)
class KeptTable(Generic[Table]):
    """Where one table lives, and how it is read and written.

    ``folder`` is its folder, both in the user's cache and among the shipped files; ``name`` is the file's without its
    ending, and ``shipped_name`` that of the shipped file where it differs. ``parse`` turns decoded JSON into the table,
    raising ValueError, TypeError, LookupError or AttributeError where that is not such a table; ``text`` is what the
    file holds.
    """

    folder: str
    name: str
    parse: Callable[[Any], Table]
    text: Callable[[Table], str]
    shipped_name: str = ""

    @property
    def path(self) -> Path:
        """In the user's cache."""
        return cache_root() / self.folder / f"{self.name}.json"

    @property
    def shipped_path(self) -> Path:
        return DATA / self.folder / f"{self.shipped_name or self.name}.json"

    def get(self, make: Callable[[], Table]) -> Table:
        """The table in the user's cache, else the shipped one, else what ``make`` gives, which is kept.

        A file that has changed since it was written, or is of another shape, counts as missing.

        Raises:
            UserError: the table had to be made and cannot be written.
        """
        table = self.find()
        if table is None:
            table = make()
            self.save(table)
        return table

    def find(self) -> Table | None:
        """The table in the user's cache, else the shipped one, else None."""
        for path in (self.path, self.shipped_path):
            if (table := self._read(path)) is not None:
                return table
        return None

    def unfinished(self, version: str) -> KeptTable[Table]:
        """Where a part of the table is kept while it is made of that ``version`` of what it is made of, for whoever
        makes it to take up again.
        """
        return replace(self, name=f"{self.name}.{version[:8]}.unfinished", shipped_name="")

    def save(self, table: Table, path: Path | None = None) -> None:
        """Writes the table to ``path``; without one to the user's cache, where the one used longest ago makes way.

        Raises:
            UserError: it cannot be written there.
        """
        if path is not None:
            write_text(path, self.text(table))
            return
        write_kept(self.path, self.text(table).encode("utf-8"))
        make_way(self.path.parent, _MOST, _MOST_BYTES)

    def _read(self, path: Path) -> Table | None:
        try:
            return self.parse(json.loads(read_kept(path)))
        except _UNREADABLE:
            return None


def json_rows(rows: Iterable[Any]) -> str:
    """A JSON list with one entry a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"


def significant(values: Iterable[float], digits: int) -> list[float]:
    """``values`` rounded to so many significant digits, as the tables hold them."""
    return [float(f"{value:.{digits}g}") for value in values]
