"""Training: what there is to learn from, and the run over the layers.

The text is the calibration passages, and what the model writes without a prompt: each of its texts begins with a token
drawn at random (as LLM-QAT does, arXiv 2305.17888), so that no data is needed. Held-out passages are never read. Every
layer that is finished is kept, so that a run that is cut off is taken up again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...calibration.documents import calibration_passages
from ...model.configuration import Activation, activation_function
from ...model.feedforward import FeedForward
from ...model.hooks import intercept
from ...support.errors import UserError
from ...support.kept import Damaged, locked, remove_kept
from ...support.lazy import inference_mode, no_grad, torch
from ...support.progress import Progress, Report, silent
from .artefact import About, Artefact, Checkpoints, load, path_of, save
from .recipe import Lesson, Recipe

if TYPE_CHECKING:
    from ...model.loading import LoadedModel

_LONGEST = 256  # tokens of a passage that are read
_WRITTEN = 64  # texts the model writes
_LENGTH = 128  # tokens of each
_LIKELIEST = 0.95  # probability mass that is drawn from
_HELD_OUT = 10  # one text in so many
_AT_ONCE = 1024  # tokens whose strengths are computed at once


def trained_artefact(lm: LoadedModel, recipe: Recipe, report: Report = silent) -> Artefact:
    """The artefact of ``recipe`` for ``lm``: the one in the user's cache, or trained now and kept.

    Raises:
        UserError: the file in the cache is of another model or other settings, or cannot be written.
    """
    from filelock import FileLock

    path = path_of(lm, recipe)
    if (artefact := _known(path, lm, recipe)) is not None:
        return artefact
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(FileLock(path.with_suffix(".lock")), report):
            if _known(path, lm, recipe) is None:  # another process may have trained it meanwhile
                remove_kept(path)
                _train(lm, recipe, path, report)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from error
    return load(path, lm, recipe)


def _known(path: Path, lm: LoadedModel, recipe: Recipe) -> Artefact | None:
    """The artefact at ``path``; None where there is none, or another than was written."""
    if not path.exists():
        return None
    try:
        return load(path, lm, recipe)
    except Damaged:
        return None


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
        layer = checkpoints.get(str(block.layer))
        if layer is None:
            x = inputs[block.layer].to(lm.device, torch.float32)
            strength = _strength(block, activation, x.to(block.down.weight.dtype))
            lesson = Lesson(block, x, strength, is_relu, len(x) - tokens)
            learned = recipe.learn(
                lesson, lambda epochs, done=done: report(Progress(stage, done + epochs, total, "epochs"))
            )
            header = {"loss": learned.loss, "recall": learned.recall, "seconds": time.perf_counter() - begin}
            checkpoints.put(str(block.layer), header, learned.tensors)
            layer = header, learned.tensors
        layers.append(layer)
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
    kept = checkpoints.get("text")
    if kept is None:
        begin = time.perf_counter()
        ids = write_texts(lm, recipe.seed, report)
        kept = {"seconds": time.perf_counter() - begin}, {"ids": ids}
        checkpoints.put("text", *kept)
    header, tensors = kept
    return [*passage_tokens(lm), *tensors["ids"].tolist()], header["seconds"]


def _split(texts: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Texts to learn from, and one in ``_HELD_OUT`` for the curves."""
    held_out = [text for place, text in enumerate(texts) if place % _HELD_OUT == _HELD_OUT - 1]
    return [text for place, text in enumerate(texts) if place % _HELD_OUT != _HELD_OUT - 1], held_out


@no_grad
def _strength(block: FeedForward, activation: Activation, x: torch.Tensor) -> torch.Tensor:
    """``|a_j| n_j`` of every neuron, float32 [tokens, d_ff]."""
    parts = [block.activations(activation, part).abs().float() * block.output_norms for part in x.split(_AT_ONCE)]
    return torch.cat(parts)


def passage_tokens(lm: LoadedModel) -> list[list[int]]:
    """Tokens of every calibration passage."""
    texts = calibration_passages().texts
    return [
        lm.tokenizer(text, truncation=True, max_length=min(_LONGEST, lm.context_length))["input_ids"] for text in texts
    ]


@inference_mode
def write_texts(lm: LoadedModel, seed: int, report: Report) -> torch.Tensor:
    """Texts that the model writes, int64 [texts, tokens]: all at once, drawn at temperature 1."""
    from transformers import DynamicCache

    length = min(_LENGTH, lm.context_length)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(lm.tokenizer), (_WRITTEN, 1), generator=generator)
    cache = DynamicCache(config=lm.model.config)
    while ids.shape[1] < length:
        report(Progress("Writing text to train on", ids.shape[1], length, "tokens"))
        step = ids[:, -1:].to(lm.device)
        logits = lm.model(input_ids=step, past_key_values=cache, use_cache=True).logits[:, -1]
        ids = torch.cat([ids, _draw(logits.float().cpu(), generator)], dim=1)
    return ids


def _draw(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A token for every row of ``logits``, int64 [rows, 1], from the likeliest that make up ``_LIKELIEST``."""
    probabilities, tokens = logits.softmax(dim=1).topk(min(1000, logits.shape[1]), dim=1)
    before = probabilities.cumsum(dim=1) - probabilities
    places = probabilities.masked_fill(before > _LIKELIEST, 0).multinomial(1, generator=generator)
    return tokens.gather(1, places)


@inference_mode
def block_inputs(lm: LoadedModel, texts: Sequence[list[int]], report: Report) -> list[torch.Tensor]:
    """The inputs of every layer's block at every token of ``texts``, float16 [tokens, d], in main memory."""
    seen: list[list[torch.Tensor]] = [[] for _ in lm.blocks]

    def see(block: FeedForward, x: torch.Tensor, _activations: torch.Tensor) -> None:
        seen[block.layer].append(x.to("cpu", torch.float16))

    with ExitStack() as hooks:
        for block in lm.blocks:
            hooks.callback(intercept(block, partial(see, block)))
        for done, ids in enumerate(texts):
            report(Progress("Reading text to train on", done, len(texts), "texts"))
            lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False, logits_to_keep=1)
    return [torch.cat(layer) for layer in seen]
