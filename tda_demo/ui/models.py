"""The models the page offers: what each needs of memory, how much is free, and those that are loaded.

What the catalogue says is known before anything is fetched or torch is imported; the heavy imports happen while a model
is loaded, beside the page.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernels.q4_sizes import RECORD, RECORD_BYTES
from ..methods import METHODS
from ..model.precision import PRECISIONS, Device, default_precision, holds_codes_only, precisions_on
from ..support.errors import UserError
from ..support.memory import available_memory
from ..support.progress import Progress, Report, silent
from .interruption import interruptible

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


logger = logging.getLogger(__name__)

EMBEDDED = "SmolLM2-135M-Instruct"

_LOW_BIT = RECORD_BYTES / RECORD  # bytes a weight
_TOKENS = 2_560  # of a long prompt and the longest answer
_CACHES = 3  # the prompt's, and one for each arm

_DRIVER = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows


@dataclass(frozen=True)
class Room:
    """``free`` bytes of ``what``: memory, or GPU memory."""

    free: float
    what: str

    def plus(self, given_back: float) -> Room:
        """As it will be once that many bytes are given back."""
        return Room(self.free + given_back, self.what)


def has_nvidia_driver() -> bool:
    """Whether there may be a CUDA GPU: asked while the page starts, when torch, which knows, is not imported."""
    return any(path.exists() for path in _DRIVER)


def is_zero_gpu_space() -> bool:
    """Whether this is a Space that is lent a GPU for one call at a time (ZeroGPU)."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


def main_memory() -> Room:
    return Room(available_memory(), "memory")


def gpu_memory() -> Room:
    """Of all CUDA devices, over which a model too large for one is spread; torch's own unused blocks count as free."""
    import torch

    devices = range(torch.cuda.device_count())
    free = sum(torch.cuda.mem_get_info(device)[0] for device in devices)
    unused = sum(torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) for device in devices)
    return Room(free + unused, "GPU memory")


@dataclass(frozen=True)
class Entry:
    """A model: its ``parameters``, those of embedding and head in ``tables``, and numbers a token of a layer caches.

    ``cached`` counts the keys alone; the values are as many. Figures are those of the models' published
    configurations. ``gated``: its owner asks for an account and for consent.
    """

    name: str
    parameters: float
    tables: float
    layers: int
    cached: int
    gated: bool = False

    def bytes_needed(self, device: Device, precision: str) -> float:
        """Upper estimate, in bytes, of weights, the copies the engines make, and the caches of a long race."""
        matrices = self.parameters - self.tables
        per_weight = PRECISIONS[precision].bytes_per_weight
        if device == "cpu":
            # transformers' float32 model reads prompts, unless codes are all there is; the compiled step has its own
            # copy, and another one of the neurons it keeps; a low-bit copy says what the others contribute, and is
            # packed too.
            number = 4
            floats = 0 if holds_codes_only(precision, self.parameters) else 4
            weights = self.parameters * (floats + per_weight) + matrices * (per_weight + 2 * _LOW_BIT)
        else:
            # Packed copies of the neurons kept, or down projections laid out by neuron beside those of bitsandbytes,
            # which quantises neither the embedding nor the head; and the low-bit copy.
            number = PRECISIONS[precision].number_bytes
            weights = self.tables * number + matrices * (2 * per_weight + _LOW_BIT)
        return weights + 2.0 * self.layers * self.cached * number * _TOKENS * _CACHES


CATALOGUE = (
    Entry(EMBEDDED, 134.5e6, 28.3e6, 30, 192),
    Entry("HuggingFaceTB/SmolLM2-360M-Instruct", 361.8e6, 47.2e6, 32, 320),
    Entry("HuggingFaceTB/SmolLM2-1.7B-Instruct", 1_711e6, 100.7e6, 24, 2048),
    Entry("Qwen/Qwen3-0.6B", 596e6, 155.6e6, 28, 1024),
    Entry("Qwen/Qwen3-4B", 4_022e6, 389e6, 36, 1024),
    Entry("Qwen/Qwen3-8B", 8_191e6, 1_245e6, 36, 1024),
    Entry("meta-llama/Llama-3.1-8B-Instruct", 8_030e6, 1_051e6, 32, 1024, gated=True),
    Entry("mistralai/Mistral-7B-Instruct-v0.3", 7_248e6, 268e6, 32, 1024, gated=True),
    Entry("google/gemma-2-2b-it", 2_614e6, 590e6, 26, 1024, gated=True),
)
"""What can be had from the hub as safetensors. facebook/opt-2.7b, which the paper's readers may look for, is left out:
its main branch holds pickles only, which are never read; a folder with the same weights as safetensors can be raced."""
_ENTRIES = {entry.name: entry for entry in CATALOGUE}


def label(name: str, device: Device) -> str:
    """``Qwen/Qwen3-8B · 42 GB``: the estimate at the device's own precision; gated models say so."""
    entry = _ENTRIES[name]
    gated = ", gated" if entry.gated else ""
    return f"{name} · {gigabytes(entry.bytes_needed(device, default_precision(device)))}{gated}"


def check_room(name: str | None, precision: str | None, device: Device, room: Room) -> None:
    """Refuses, before anything is fetched, a listed model that is too large for ``room``. Others are not known.

    Raises:
        UserError: with both numbers.
    """
    entry = _ENTRIES.get(name or EMBEDDED)
    kind = precision or default_precision(device)
    if entry is None or kind not in precisions_on(device):
        return
    needed = entry.bytes_needed(device, kind)
    if needed > room.free:
        raise UserError(
            f"{entry.name} in {kind} needs about {gigabytes(needed)} of {room.what}, and {gigabytes(room.free)} are "
            "free: choose a smaller model or precision."
        )


def check_access(name: str | None) -> None:
    """Refuses a gated model that is not stored here where no hub token is set.

    Raises:
        UserError: says what to do.
    """
    entry = _ENTRIES.get(name or EMBEDDED)
    if entry is None or not entry.gated:
        return
    from huggingface_hub import get_token, try_to_load_from_cache

    if get_token() is None and not isinstance(try_to_load_from_cache(entry.name, "config.json"), str):
        raise UserError(
            f"{entry.name} is gated and this page's server has no hub token: its owner accepts the terms on the "
            "model's hub page, sets HF_TOKEN, and starts the page again."
        )


def gigabytes(number: float) -> str:
    """``0.9 GB``, ``42 GB``."""
    return f"{number / 1e9:.1f} GB" if number < 9.95e9 else f"{number / 1e9:.0f} GB"


@dataclass(frozen=True)
class ModelState:
    """What the page says of the model it starts with: it is being loaded, it is ready, or it failed."""

    progress: Progress | None = None
    layers: int = 0
    environment: dict[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def settled(self) -> bool:
        return bool(self.layers or self.failure)


class Models:
    """Loads models and keeps the ``most`` recently used. Everything but ``state`` is for the worker's thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.state = ModelState(Progress("Starting", 0, 0, ""))
        self._loaded: OrderedDict[tuple[str | None, str], LoadedModel] = OrderedDict()
        self._automatic: dict[str | None, str] = {}  # which precision None came to
        self.calibrating: dict[str, Progress] = {}  # by fingerprint
        self._given_up: set[str] = set()

    def preload(self) -> None:
        """Loads the default model, so that the first visitor does not wait for it."""
        try:
            self._default(self._show)
        except UserError as error:
            self.state = ModelState(failure=str(error))
        except Exception:
            logger.exception("The default model was not loaded.")
            self.state = ModelState(failure="The model could not be loaded; the server's log has the details.")

    def _default(self, report: Report) -> None:
        self.get(None, None, report)

    def get(self, name: str | None, precision: str | None, report: Report = silent) -> LoadedModel:
        """The model, from memory or freshly loaded.

        Raises:
            UserError: see ``load_model``.
        """
        wanted = precision or self._automatic.get(name)
        if wanted is None or (name, wanted) not in self._loaded:
            lm = self._load(name, precision, report)
            wanted = lm.precision
            if precision is None:
                self._automatic[name] = wanted
            self._loaded[name, wanted] = lm
        self._loaded.move_to_end((name, wanted))
        return self._loaded[name, wanted]

    def calibrate(self, report: Report) -> bool:
        """Goes on with the calibration of a large model that is loaded, whose first race did without; whether there is
        one. ``calibrating`` says how far it is.
        """
        from ..methods.first_use import SMALL, calibrate, is_calibrated

        method = next(iter(METHODS.values()))()
        for lm in list(self._loaded.values()):
            if lm.weight_count < SMALL or lm.fingerprint in self._given_up or is_calibrated(method, lm):
                continue

            def tell(progress: Progress, lm: LoadedModel = lm) -> None:
                self.calibrating[lm.fingerprint] = progress
                report(progress)

            try:
                calibrate(method, lm, tell)
            except UserError as error:  # no room on the disk, or a model that calibration does not suit
                logger.warning("%s is not calibrated: %s", lm.name, error)
                self._given_up.add(lm.fingerprint)
            self.calibrating.pop(lm.fingerprint, None)
            return True
        return False

    def _load(self, name: str | None, precision: str | None, report: Report) -> LoadedModel:
        from ..decode.choose import engine_for
        from ..decode.cpu.compile_ahead import compile_ahead
        from ..model.loading import load_model
        from ..model.precision import give_back_memory
        from ..support.environment import describe

        self._check(name, precision)
        while len(self._loaded) >= self.most:  # before loading, so that both are never in memory
            self._loaded.popitem(last=False)
            give_back_memory()
        compile_ahead(name, precision)
        lm = interruptible(load_model(name, precision=precision, report=report))
        # What is slow once belongs to loading, not to somebody's first race. The policy first, whose copies are made in
        # this process: then what the second one compiles is waited for.
        if lm.name == EMBEDDED:  # whose tables are shipped
            policy = next(iter(METHODS.values()))().bind(lm, report)
            engine_for(lm, policy).warm_up(report, policy)
        engine_for(lm).warm_up(report)
        give_back_memory()
        if name is None:
            self.state = ModelState(layers=len(lm.blocks), environment=describe(lm.device, lm.precision))
        return lm

    def _check(self, name: str | None, precision: str | None) -> None:
        """Before anything is fetched, and before another model has to go.

        Raises:
            UserError: the model is too large for the memory there is, or gated and no token is set.
        """
        import torch

        check_access(name)
        leaving = list(self._loaded.values())[: max(0, len(self._loaded) - self.most + 1)]
        given_back = sum(parameter.nbytes for lm in leaving for parameter in lm.model.parameters())
        on_gpu = torch.cuda.is_available()
        room = gpu_memory() if on_gpu else main_memory()
        check_room(name, precision, "cuda" if on_gpu else "cpu", room.plus(given_back))

    def _show(self, progress: Progress) -> None:
        self.state = ModelState(progress)
