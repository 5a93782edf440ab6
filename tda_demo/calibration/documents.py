"""Texts: files of documents, and the project's own passages, to calibrate on and held out for scoring.

A file is read as a stream: one of any size takes the memory of its longest document's beginning.

Two formats, for every command alike: plain text whose documents are separated by lines holding only ``###``, and
``.jsonl`` with a ``text`` on every line and perhaps a ``reference``, what a good continuation of it says.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..support.errors import UserError
from ..support.files import DATA

PASSAGES = DATA / "passages.jsonl"
KEPT_CHARACTERS = 1 << 20  # of a plain text's document; what follows is read past
_PIECE_BYTES = 1 << 16  # of a line taken at once, so that a line of any length is read in flat memory
_LINE_BYTES = 1 << 26  # of a JSON line, which can only be parsed whole


@dataclass(frozen=True)
class Document:
    """A text, the line of the file it begins on (from 1), and its reference where the file gives one."""

    text: str
    line: int
    reference: str | None = None


def read_documents(path: Path) -> Iterator[Document]:
    """The documents of ``path`` in order; blank ones are left out.

    Raises:
        UserError: the file cannot be read, is not UTF-8 (the line is named), or a JSON line is not an object with a
            ``text`` (the line is named).
    """
    try:
        with path.open("rb") as file:
            yield from _json_lines(file, path) if path.suffix == ".jsonl" else _plain(file, path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def count_documents(path: Path, limit: int | None = None) -> int:
    """How many documents the file holds, at most ``limit``: a pass that finds what is wrong before hours are spent.

    Raises:
        UserError: see ``read_documents``; or there is no document.
    """
    count = 0
    for count, _ in enumerate(read_documents(path), start=1):
        if count == limit:
            break
    if count == 0:
        raise UserError(f"{path} holds no text.")
    return count


def project_passages(*, held_out: bool | None = None, language: str | None = None) -> list[Document]:
    """The project's own passages: those held out for scoring or those to calibrate on, those in a language ("en",
    "code"); None takes either.
    """
    lines = [json.loads(line) for line in PASSAGES.read_text(encoding="utf-8").splitlines()]
    return [
        Document(line["text"], number)
        for number, line in enumerate(lines, start=1)
        if held_out in (None, line["held_out"]) and language in (None, line["language"])
    ]


def _plain(file: BinaryIO, path: Path) -> Iterator[Document]:
    kept: list[str] = []
    size = 0
    begun = 1
    for line, text, whole in _pieces(file, path):
        if whole and text.strip() == "###":
            yield from _document(kept, begun)
            kept, size = [], 0
        elif kept or text.strip():
            begun = begun if kept else line
            if size < KEPT_CHARACTERS:
                kept.append(text[: KEPT_CHARACTERS - size])
            size += len(text)
    yield from _document(kept, begun)


def _document(pieces: list[str], line: int) -> Iterator[Document]:
    if text := "".join(pieces).strip():
        yield Document(text, line)


def _pieces(file: BinaryIO, path: Path) -> Iterator[tuple[int, str, bool]]:
    """Line number, text and whether the text is a whole line; a long line comes in several pieces."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line, at_start = 1, True
    while piece := file.readline(_PIECE_BYTES):
        ends = piece.endswith(b"\n")
        try:
            text = decoder.decode(piece, final=ends)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, line) from error
        whole = at_start and (ends or len(piece) < _PIECE_BYTES)  # the last line may lack its end
        yield line, text.removeprefix("\ufeff") if line == 1 and at_start else text, whole
        line, at_start = line + ends, ends
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, line) from error


def _json_lines(file: BinaryIO, path: Path) -> Iterator[Document]:
    number = 0
    while raw := file.readline(_LINE_BYTES + 1):
        number += 1
        if len(raw) > _LINE_BYTES:
            raise UserError(f"{path}, line {number} is longer than {_LINE_BYTES >> 20} MB: split it into documents.")
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number) from error
        if line.strip():
            yield from _parse_document(line, number, path)


def _parse_document(line: str, number: int, path: Path) -> Iterator[Document]:
    try:
        fields = json.loads(line)
    except ValueError as error:
        reason = getattr(error, "msg", str(error))
        raise UserError(f"{path}, line {number} is not JSON: {reason}.") from error
    except RecursionError as error:
        raise UserError(f"{path}, line {number} is not JSON that can be read: it is nested too deeply.") from error
    text = fields.get("text") if isinstance(fields, dict) else None
    if not isinstance(text, str):
        raise UserError(f"{path}, line {number} has no text: every line must be an object with a string 'text'.")
    reference = fields.get("reference")
    if reference is not None and not isinstance(reference, str):
        raise UserError(f"{path}, line {number}: its 'reference' is not a string.")
    if text.strip():
        # JSON can spell half of a surrogate pair, which is no text that a tokenizer takes.
        yield Document(text.encode("utf-8", "replace").decode("utf-8"), number, reference)


def _not_utf8(path: Path, line: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text: line {line} holds bytes that are not.")


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
    return Passages(PASSAGES.name, tuple(project_passages(held_out=False)))


def held_out_passages() -> Passages:
    """The project's own passages that nothing is calibrated or trained on."""
    return Passages("the project's held-out passages", tuple(project_passages(held_out=True)))


def read_passages(path: Path) -> Passages:
    """Every document of the file at ``path``.

    Raises:
        UserError: see ``read_documents``; or there is no document.
    """
    count_documents(path, 1)
    return Passages(path.name, tuple(read_documents(path)))
