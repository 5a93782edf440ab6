"""The models the page names, and what each needs of memory: known before anything is fetched or torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.precision import PRECISIONS, Device, default_precision, precisions_on
from ..support.errors import UserError
from .memory import Room

EMBEDDED = "SmolLM2-135M-Instruct"

_TOKENS = 2_560  # of a long prompt and the longest answer
_CACHES = 3  # the prompt's, and one for each arm


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
            # transformers' float32 model reads prompts; the compiled step has its own copy, and another one of the
            # neurons it keeps.
            number = 4
            weights = self.parameters * (4 + per_weight) + matrices * per_weight
        else:
            # Packed copies of the neurons kept, or down projections laid out by neuron beside those of bitsandbytes,
            # which quantises neither the embedding nor the head.
            number = PRECISIONS[precision].number_bytes
            weights = self.tables * number + 2 * matrices * per_weight
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
