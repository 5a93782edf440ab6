"""Where files are shipped and kept between runs, and how they are written: whole, or not at all."""

from __future__ import annotations

import os
import re
import sys
import uuid
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent.parent
DATA = _PACKAGE / "data"  # what the project ships for itself: texts, tables, a sweep
_WHEEL_ASSETS = _PACKAGE / "assets"  # the checkout's top-level folder, which a wheel carries inside the package
ASSETS = _WHEEL_ASSETS if _WHEEL_ASSETS.is_dir() else _PACKAGE.parent / "assets"  # what the browser gets


def cache_root() -> Path:
    """Where this project keeps files between runs: TDA_DEMO_CACHE, else ``tda-demo`` in the user's cache folder."""
    if chosen := os.environ.get("TDA_DEMO_CACHE"):
        return Path(chosen).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "tda-demo"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "tda-demo"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "tda-demo"
    return Path.home() / ".cache" / "tda-demo"


def kept_name(model: str, fingerprint: str, *parts: str) -> str:
    """What a file made for one model is called, without its ending: names tell people, fingerprints tell weights apart.

    ``model`` may be a hub id or any other name; only what every file system takes is left of it.
    """
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", model).strip("-.")[-60:]
    return "-".join([slug, fingerprint[:12], *parts])


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 ``text``; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes ``content`` to a temporary name beside ``path``, then renames it.

    Raises:
        UserError: the folder cannot be made, or the file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
