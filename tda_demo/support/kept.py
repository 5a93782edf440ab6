"""Files that are kept between runs and know their content: a SHA-256 stands beside each, and the oldest make way.

What lies on a disk for months changes: a bit flips, a copy is cut short, somebody edits. Nothing kept is believed
before it is compared with what was written; what does not match counts as missing and is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from .files import write_bytes
from .progress import Progress, Report

if TYPE_CHECKING:
    from filelock import BaseFileLock

_WAIT_SECONDS = 0.2


class Damaged(ValueError):
    """A file is not what was written there."""


def write_kept(path: Path, content: bytes) -> None:
    """Writes ``content`` and its sum: the sum first, so that what a kill leaves behind does not match.

    Raises:
        UserError: as ``write_bytes``.
    """
    write_bytes(_sum(path), _digest(content).encode())
    write_bytes(path, content)


def read_kept(path: Path) -> bytes:
    """What ``write_kept`` wrote there; a file without a sum, of an older version or shipped, is taken as it is.

    Raises:
        OSError: it cannot be read.
        Damaged: it has changed since.
    """
    content = path.read_bytes()
    try:
        known = _sum(path).read_bytes()
    except FileNotFoundError:
        known = None
    if known is None:
        return content
    if known != _digest(content).encode():
        raise Damaged(f"{path} has changed since it was written")
    with suppress(OSError):  # a read-only folder forgets what was used last
        os.utime(path)
    return content


def remove_kept(path: Path) -> None:
    """Removes the file and its sum."""
    path.unlink(missing_ok=True)
    _sum(path).unlink(missing_ok=True)


def make_way(folder: Path, most: int, most_bytes: int) -> None:
    """Removes what was used longest ago in ``folder``, files with their sums and folders, until ``most`` are left that
    take at most ``most_bytes``; the one used last stays.
    """
    entries: list[tuple[float, int, Path]] = []
    with suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (".lock", ".sha256"):
                continue
            with suppress(OSError):  # another process removes too
                entries.append((path.stat().st_mtime, _size(path), path))
    left = 0
    for place, (_, size, path) in enumerate(sorted(entries, reverse=True)):
        left += size
        if place and (place >= most or left > most_bytes):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else remove_kept(path)


@contextmanager
def locked(lock: BaseFileLock, report: Report) -> Iterator[None]:
    """``lock``, held; while another process holds it ``report`` hears that this one waits, and may end it.

    Raises:
        OSError: the lock's file cannot be written.
    """
    from filelock import Timeout

    while True:
        try:
            lock.acquire(timeout=_WAIT_SECONDS)
            break
        except Timeout:
            report(Progress("Waiting for another process that makes the same", 0, 0, ""))
    try:
        yield
    finally:
        lock.release()


def _sum(path: Path) -> Path:
    return path.with_name(f".{path.name}.sha256")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _size(path: Path) -> int:
    if not path.is_dir():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
