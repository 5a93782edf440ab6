"""Which texts are calibrated on and which are held out for scoring, with the name and hash results remember them by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from .documents import PASSAGES, Document, count_documents, passages, read_documents


@dataclass(frozen=True)
class Passages:
    """Documents under one name."""

    name: str
    documents: tuple[Document, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(document.text for document in self.documents)

    @property
    def sha256(self) -> str:
        """Of the texts, in hex."""
        return hashlib.sha256("\0".join(self.texts).encode()).hexdigest()


def calibration_passages() -> Passages:
    """The project's own passages, those held out for scoring left out."""
    return Passages(PASSAGES.name, tuple(passages(held_out=False)))


def held_out_passages() -> Passages:
    """The project's own passages that nothing is calibrated or trained on."""
    return Passages("the project's held-out passages", tuple(passages(held_out=True)))


def read_passages(path: Path) -> Passages:
    """Every document of the file at ``path``.

    Raises:
        UserError: see ``documents.read_documents``; or there is no document.
    """
    count_documents(path, 1)
    return Passages(path.name, tuple(read_documents(path)))
