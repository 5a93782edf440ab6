"""The file that a trained method is kept in, and the finished layers of one that is still in training.

Everything is one safetensors file, written whole: the tensors of every layer and, in its header, what it was trained
from and how that went.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...support.errors import UserError
from ...support.files import cache_root, kept_name
from ...support.kept import Damaged, make_way, read_kept, write_kept
from ...support.lazy import torch
from .recipe import Recipe

if TYPE_CHECKING:
    from ...model.loading import LoadedModel

_MOST, _MOST_BYTES = 32, 2 << 30  # artefacts and unfinished ones: visitors may choose settings that each have their own


@dataclass(frozen=True)
class About:
    """What an artefact was trained from, in how many ``seconds`` over all runs, and its curves, a layer each."""

    method: str
    settings: dict[str, Any]
    model: str
    fingerprint: str
    precision: str
    tokens: int
    seconds: float
    loss: list[list[float]]
    recall: list[list[float]]

    @property
    def note(self) -> str:
        return f"trained for {self.seconds:.0f} s on {self.tokens:,} tokens"


@dataclass(frozen=True, eq=False)
class Artefact:
    """The tensors of every layer; ``identity`` is a hex id of what they say."""

    about: About
    layers: tuple[dict[str, torch.Tensor], ...]
    identity: str


def path_of(lm: LoadedModel, recipe: Recipe) -> Path:
    """Where the artefact of this model and these settings lives in the user's cache."""
    settings = hashlib.sha256(json.dumps(recipe.settings(), sort_keys=True).encode()).hexdigest()
    return cache_root() / "trained" / f"{kept_name(lm.name, lm.fingerprint, recipe.name, settings[:8])}.safetensors"


def load(path: Path, lm: LoadedModel, recipe: Recipe) -> Artefact:
    """The artefact at ``path``.

    Raises:
        Damaged: it is not what was written there.
        UserError: it was trained for another model, method or other settings.
    """
    try:
        content = read_kept(path)
        header, tensors = _read(content)
        about = About(**header)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"{path} is damaged") from error
    if (about.method, about.fingerprint) != (recipe.name, lm.fingerprint):
        raise _refusal(path, f"is {about.method}, trained for {about.model}")
    if about.settings != recipe.settings() or len(about.loss) != len(lm.blocks):
        raise _refusal(path, "was trained with other settings")
    layers = tuple(tensors.get(str(block.layer), {}) for block in lm.blocks)
    return Artefact(about, layers, hashlib.sha256(content).hexdigest())


def _refusal(path: Path, why: str) -> UserError:
    return UserError(f"{path} {why}, not for this race: remove that file, and it is trained anew.")


def save(path: Path, about: About, layers: list[dict[str, torch.Tensor]]) -> None:
    tensors = {f"{index}.{name}": part for index, layer in enumerate(layers) for name, part in layer.items()}
    write_kept(path, _serialise(tensors, asdict(about)))
    make_way(path.parent, _MOST, _MOST_BYTES)


class Checkpoints:
    """The parts of an artefact that are finished, a file each in a folder beside it; a torn one counts as missing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]] | None:
        """What ``put`` was given."""
        try:
            header, tensors = _read(read_kept(self.folder / f"{name}.safetensors"))
        except (OSError, ValueError, KeyError):
            return None
        return header, tensors[""]

    def put(self, name: str, header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        parts = {f".{part}": tensor for part, tensor in tensors.items()}
        write_kept(self.folder / f"{name}.safetensors", _serialise(parts, header))
        if name == "text":  # the first of its files: others, of training that nobody finished, may have to go
            make_way(self.folder.parent, _MOST, _MOST_BYTES)

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _serialise(tensors: dict[str, torch.Tensor], header: dict[str, Any]) -> bytes:
    from safetensors.torch import save

    parts = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return save(parts, {"about": json.dumps(header)})


def _read(content: bytes) -> tuple[dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """The header, and tensors by layer and name.

    Raises:
        ValueError: the content is not what ``_serialise`` gives.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["about"])
        layers: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in load(content).items():
            layer, part = name.split(".", 1)
            layers.setdefault(layer, {})[part] = tensor
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    return header, layers
