"""Training, layer by layer: each that is finished is kept, so that a run that is cut off is taken up again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...model.activation import Activation, activation_function
from ...model.feedforward import FeedForward
from ...support.errors import UserError
from ...support.lazy import no_grad, torch
from ...support.progress import Progress, Report, silent
from .artefact import About, Artefact, Checkpoints, load, path_of, save
from .inputs import block_inputs
from .recipe import Lesson, Recipe
from .text import passages, written

if TYPE_CHECKING:
    from ...model.loading import LoadedModel

_HELD_OUT = 10  # one text in so many
_AT_ONCE = 1024  # tokens


def trained(lm: LoadedModel, recipe: Recipe, report: Report = silent) -> Artefact:
    """The artefact of ``recipe`` for ``lm``: the one in the user's cache, or trained now and kept.

    Raises:
        UserError: the file in the cache is damaged, or of another model or other settings; it cannot be written.
    """
    from filelock import FileLock

    path = path_of(lm, recipe)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    with FileLock(path.with_suffix(".lock")):  # another process may be training it
        if not path.exists():
            _train(lm, recipe, path, report)
        return load(path, lm, recipe)


def _train(lm: LoadedModel, recipe: Recipe, path: Path, report: Report) -> None:
    checkpoints = Checkpoints(path.with_name(f".{path.stem}-{lm.precision}.unfinished"))
    texts, seconds = _texts(lm, recipe, checkpoints, report)
    learning, held_out = _split(texts)
    tokens = sum(map(len, learning))
    begin = time.perf_counter()
    inputs = block_inputs(lm, [*learning, *held_out], report)
    seconds += time.perf_counter() - begin
    activation = activation_function(lm.model)
    is_relu = type(activation).__name__.startswith("ReLU")
    layers = []
    stage, total = f"Training {recipe.name}", len(lm.blocks) * recipe.epochs

    for block in lm.blocks:
        begin = time.perf_counter()
        done = block.layer * recipe.epochs
        report(Progress(stage, done, total, "epochs"))
        found = checkpoints.get(str(block.layer))
        if found is None:
            x = inputs[block.layer].to(lm.device, torch.float32)
            strength = _strength(block, activation, x.to(block.down.weight.dtype))
            lesson = Lesson(block, x, strength, is_relu, len(x) - tokens)
            learned = recipe.learn(
                lesson, lambda epochs, done=done: report(Progress(stage, done + epochs, total, "epochs"))
            )
            header = {"loss": learned.loss, "recall": learned.recall, "seconds": time.perf_counter() - begin}
            checkpoints.put(str(block.layer), header, learned.tensors)
            found = header, learned.tensors
        layers.append(found)
    report(Progress(stage, total, total, "epochs"))
    about = About(
        method=recipe.name,
        settings=recipe.settings(),
        model=lm.name,
        fingerprint=lm.fingerprint,
        precision=lm.precision,
        tokens=tokens,
        seconds=seconds + sum(header["seconds"] for header, _ in layers),
        loss=[list(header["loss"]) for header, _ in layers],
        recall=[list(header["recall"]) for header, _ in layers],
    )
    save(path, about, [tensors for _, tensors in layers])
    checkpoints.discard()


def _texts(lm: LoadedModel, recipe: Recipe, checkpoints: Checkpoints, report: Report) -> tuple[list[list[int]], float]:
    """What is trained on, and how long the model took to write its part."""
    found = checkpoints.get("text")
    if found is None:
        begin = time.perf_counter()
        ids = written(lm, recipe.seed, report)
        found = {"seconds": time.perf_counter() - begin}, {"ids": ids}
        checkpoints.put("text", *found)
    return [*passages(lm), *found[1]["ids"].tolist()], found[0]["seconds"]


def _split(texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Texts to learn from, and one in ``_HELD_OUT`` for the curves."""
    held_out = [text for place, text in enumerate(texts) if place % _HELD_OUT == _HELD_OUT - 1]
    return [text for place, text in enumerate(texts) if place % _HELD_OUT != _HELD_OUT - 1], held_out


@no_grad
def _strength(block: FeedForward, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """``|a_j| n_j`` of every neuron, float32 [tokens, d_ff]."""
    parts = [block.activations(activation, part).abs().float() * block.output_norms for part in x.split(_AT_ONCE)]
    return torch.cat(parts)
