"""How numba compiles: undisturbed, and keeping what is compiled here in files that know their content, or in memory.

numba's own cache runs whatever its files hold, and refuses to compile where no folder can be written, as in a container
with a read-only image. Other packages' compiled functions stay where numba puts them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from numba.core import caching
from numba.core import event as events

from ...support.errors import UserError
from ...support.kept import Damaged, make_way, read_kept, write_kept
from ...support.memory import nothing_collected

_HERE = Path(__file__).resolve().parent
_PATIENCE = 10  # seconds for another process to write what it compiled
_MOST_STATES, _MOST_BYTES = 4, 512 * 2**20  # of the sources that code is kept for


def forget_old_code(folder: Path) -> None:
    """``folder`` is in use: of its neighbours, code of other states of the sources, those used longest ago go."""
    with suppress(OSError):
        os.utime(folder)
    make_way(folder.parent, _MOST_STATES, _MOST_BYTES)


def keep_code_in(folder: Path, sources: Path = _HERE) -> None:
    """From now on what is compiled of functions below ``sources`` is looked for, and kept, in ``folder``."""

    locks: dict[int, FileLock] = {}  # by process: one that was forked has to have its own

    class Locator(caching.UserProvidedCacheLocator):
        def __init__(self, py_func: Any, py_file: str) -> None:
            super().__init__(py_func, py_file)
            self._cache_path = str(folder / self.get_suitable_cache_subpath(py_file))

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Any:
            return cls(py_func, py_file) if sources in Path(py_file).resolve().parents else None

        def ensure_cache_path(self) -> None:
            with suppress(OSError):
                os.makedirs(self._cache_path, exist_ok=True)

    class CheckedFile(caching.IndexDataCacheFile):
        @property
        def _ours(self) -> bool:
            return folder in Path(self._cache_path).parents

        def save(self, key: Any, data: Any) -> None:
            with self._alone() as alone:
                if alone:  # else it stays in memory
                    super().save(key, data)

        def load(self, key: Any) -> Any:
            with self._alone():
                return super().load(key)

        @contextmanager
        def _alone(self) -> Iterator[bool]:
            """Without another process that is at the same: an index is read, extended and written, and then the code.

            Two at once would give two functions one name. False where no lock is to be had, in a read-only folder say.
            """
            with ExitStack() as held:
                alone = not self._ours
                with suppress(OSError, NotImplementedError):  # Timeout is an OSError
                    if self._ours:
                        lock = locks.setdefault(os.getpid(), FileLock(folder / ".lock"))
                        held.enter_context(lock.acquire(_PATIENCE))
                        alone = True
                yield alone

        def _load_index(self) -> Any:
            try:
                self._check(self._index_path)
                return super()._load_index()
            except (OSError, ImportError, AttributeError):  # damaged, or kept for types that this program has not
                return {}

        def _load_data(self, name: str) -> Any:
            self._check(self._data_path(name))
            return super()._load_data(name)

        def _check(self, path: str) -> None:
            """Raises OSError where the file is not to be had, which numba takes as not compiled yet."""
            if self._ours:
                try:
                    read_kept(Path(path))
                except Damaged as error:
                    raise OSError(str(error)) from error

        @contextmanager
        def _open_for_write(self, filepath: str) -> Iterator[Any]:
            if not self._ours:
                with super()._open_for_write(filepath) as file:
                    yield file
                return
            content = io.BytesIO()
            yield content
            with suppress(UserError):  # it stays in memory
                write_kept(Path(filepath), content.getvalue())

    caching.CacheImpl._locator_classes = [Locator, *caching.CacheImpl._locator_classes]
    caching.IndexDataCacheFile = CheckedFile  # type: ignore[misc]


class _Undisturbed(events.Listener):
    """Has Python's collector rest from the beginning of a compilation to its end."""

    def __init__(self) -> None:
        self._running = 0  # a function, and those that it calls

    def on_start(self, event: Any) -> None:
        nothing_collected.__enter__()
        self._running += 1

    def on_end(self, event: Any) -> None:
        if self._running:  # not of a function that was being compiled before this one listened
            self._running -= 1
            nothing_collected.__exit__()


def compile_undisturbed() -> None:
    """From now on nothing is collected while numba compiles anything, which it does in one thread at a time."""
    events.register("numba:compile", _Undisturbed())
