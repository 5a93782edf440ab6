"""A cache of finished folders: each appears whole, by one rename, or not at all, and knows its content.

``manifest.json`` has the files' sizes, ``content.json`` their SHA-256 and what they looked like (size and time of
change) when that was last compared. They are compared again as soon as they look otherwise, and once a day.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from ...support.errors import UserError
from ...support.files import cache_root, write_text
from ...support.kept import locked
from ...support.progress import Report, silent

MANIFEST = "manifest.json"
CONTENT = "content.json"
_CHECK_SECONDS = 24 * 3600
_UNREADABLE = (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError)
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class _Content:
    """``sha256`` and ``looks`` (size, time of change in ns) by file name, compared ``at`` seconds since the epoch."""

    sha256: dict[str, str]
    looks: dict[str, list[int]]
    at: float


def cached_folder(name: str, fill: Callable[[Path], None], needs_bytes: int, report: Report = silent) -> Path:
    """The folder ``name`` of the cache; ``fill(folder)`` makes it where it is missing, and anew where it is damaged.

    One process fills, the others wait for it and use what it made. What a killed process left behind is swept away.

    Args:
        fill: writes plain files into the empty folder it is given.
        needs_bytes: free space to insist on before starting.
        report: hears that another process is waited for.

    Raises:
        UserError: no room, or no right to write; or the folder is damaged, and ``fill`` cannot make it anew.
    """
    root = cache_root()
    target = root / name
    if not (fault := find_fault(target)):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with locked(FileLock(root / f".{name}.lock"), report):
            if fault := find_fault(target):
                _make(target, fill, needs_bytes)
    except UserError as error:
        if target.exists():
            raise _damaged(target, fault, str(error)) from error
        raise
    except OSError as error:
        raise _explained(error, root) from error
    return target


def find_fault(folder: Path) -> str:
    """What is wrong with a cached ``folder``, in a few words; "" where nothing is.

    Sizes are compared at every call, which finds what was cut short; content only where it may have changed.
    """
    try:
        sizes = json.loads((folder / MANIFEST).read_bytes())
        if not sizes or any(type(size) is not int for size in sizes.values()):
            return f"{MANIFEST} is not readable"
        looks = {name: _look(folder / name) for name in sizes}
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except _UNREADABLE:
        return f"{MANIFEST} is not readable"
    wrong = [name for name, size in sizes.items() if looks[name][0] != size]
    if wrong:
        return f"{wrong[0]} has another size"
    return _find_change(folder, looks)


def _find_change(folder: Path, looks: dict[str, list[int]]) -> str:
    """The first of the files of these ``looks`` whose content is not what was written."""
    try:
        known = _Content(**json.loads((folder / CONTENT).read_bytes()))
        if known.sha256.keys() != looks.keys():
            return f"{CONTENT} does not match"
        if known.looks == looks and 0 <= time.time() - known.at < _CHECK_SECONDS:
            return ""
        found = {name: _digest(folder / name) for name in looks}
        if wrong := [name for name in looks if found[name] != known.sha256[name]]:
            return f"{wrong[0]} has changed"
    except FileNotFoundError:  # made by a version that kept no sums: from now on they are known
        found = {name: _digest(folder / name) for name in looks}
    except _UNREADABLE:
        return f"{CONTENT} is not readable"
    with suppress(UserError):  # baked into a read-only image it is compared at every start
        _write_content(folder, _Content(found, looks, time.time()))
    return ""


def _look(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_content(folder: Path, content: _Content) -> None:
    write_text(folder / CONTENT, json.dumps(asdict(content), indent=1))


def _make(target: Path, fill: Callable[[Path], None], needs_bytes: int) -> None:
    """Only to be called by the holder of the lock, so every unfinished folder found is a dead process's."""
    prefix = f"{_UNFINISHED}{target.name}-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    if shutil.disk_usage(target.parent).free < needs_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        fill(folder)
        files = list(folder.iterdir())
        looks = {file.name: _look(file) for file in files}
        (folder / MANIFEST).write_text(json.dumps({name: size for name, (size, _) in looks.items()}, indent=1))
        _write_content(folder, _Content({file.name: _digest(file) for file in files}, looks, time.time()))
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _damaged(folder: Path, fault: str, why: str) -> UserError:
    return UserError(
        f"The files in {folder} are damaged ({fault}) and could not be made anew: {why} Or remove that folder and "
        "start again."
    )


def _explained(error: OSError, root: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(
            f"The disk that holds {root} is full: free about 1 GB there, or set TDA_DEMO_CACHE to a folder elsewhere."
        )
    reason = error.strerror or str(error)
    return UserError(f"The cache folder {root} cannot be used ({reason}): set TDA_DEMO_CACHE to a folder that can.")
