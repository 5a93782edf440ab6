"""How files are written: whole, or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from .errors import UserError


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 ``text`` to a temporary name beside ``path``, then renames it.

    Raises:
        UserError: the folder cannot be made, or the file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
