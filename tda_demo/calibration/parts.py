"""What calibration texts gave so far, kept while a table is made of them: a run that is cut off goes on where it was.

A text that is read at once is not worth a file; of a large model each takes seconds, and all of them many minutes.
"""

from __future__ import annotations

import glob
import io
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..support.files import cache_root
from ..support.kept import make_way, read_kept, remove_kept, write_kept

Arrays = Mapping[str, np.ndarray]

_WORTH_SECONDS = 1.0
_MOST, _MOST_BYTES = 512, 512 << 20
_UNREADABLE = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile)


@dataclass(frozen=True)
class Parts:
    """Arrays by a text's place, under a ``name`` that tells the table and what it is made of from others."""

    name: str

    @property
    def _folder(self) -> Path:
        return cache_root() / "unfinished"

    def _path(self, place: int) -> Path:
        return self._folder / f"{self.name}.{place}.npz"

    def get(self, place: int, make: Callable[[], Arrays]) -> Arrays:
        """Those kept, else what ``make`` gives, which is kept where that took its time.

        Raises:
            UserError: they cannot be written.
        """
        try:
            with np.load(io.BytesIO(read_kept(self._path(place))), allow_pickle=False) as found:
                return {key: found[key] for key in found.files}
        except _UNREADABLE:
            pass
        begin = time.perf_counter()
        arrays = make()
        if time.perf_counter() - begin > _WORTH_SECONDS:
            content = io.BytesIO()
            np.savez(content, **arrays)  # pyright: ignore[reportArgumentType]
            write_kept(self._path(place), content.getvalue())
            make_way(self._folder, _MOST, _MOST_BYTES)
        return arrays

    def remove(self) -> None:
        """Forgets them, once the table is there."""
        for path in self._folder.glob(f"{glob.escape(self.name)}.*.npz"):
            remove_kept(path)
