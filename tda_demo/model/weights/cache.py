"""A cache of finished folders: each appears whole, by one rename, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from ...support.errors import UserError
from ...support.files import cache_root

MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"


def cached_folder(name: str, fill: Callable[[Path], None], needs_bytes: int) -> Path:
    """The folder ``name`` of the cache; ``fill(folder)`` makes it where it is missing or damaged.

    One process fills, the others wait for it and use what it made. What a killed process left behind is swept away.

    Args:
        fill: writes plain files into the empty folder it is given.
        needs_bytes: free space to insist on before starting.

    Raises:
        UserError: no room, or no right to write.
    """
    root = cache_root()
    target = root / name
    if is_complete(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{name}.lock"):
            if not is_complete(target):
                _make(target, fill, needs_bytes)
    except OSError as error:
        raise _explained(error, root) from error
    return target


def is_complete(folder: Path) -> bool:
    """Whether every file of ``folder`` has the size its manifest tells: finds truncated files without reading them."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


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
        sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
        (folder / MANIFEST).write_text(json.dumps(sizes, indent=1))
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _explained(error: OSError, root: Path) -> UserError:
    if error.errno == errno.ENOSPC:
        return UserError(
            f"The disk that holds {root} is full: free about 1 GB there, or set TDA_DEMO_CACHE to a folder elsewhere."
        )
    reason = error.strerror or str(error)
    return UserError(f"The cache folder {root} cannot be used ({reason}): set TDA_DEMO_CACHE to a folder that can.")
