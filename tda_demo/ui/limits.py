"""What one visitor may ask of a public page: the caps, and the check of a request against them, both in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .offers import Offers


@dataclass(frozen=True)
class Limits:
    """Caps on one request and on the page as a whole. Seconds count from when the model has read the prompt."""

    prompt_characters: int = 8_000
    max_new_tokens: int = 512
    seconds_per_run: float = 120.0
    waiting_runs: int = 8
    loaded_models: int = 2
    cett: tuple[float, float] = (0.0, 0.6)
    temperature: tuple[float, float] = (0.0, 2.0)
    top_p: tuple[float, float] = (0.0, 1.0)
    scale: tuple[float, float] = (0.0, 2.0)
    seed: tuple[int, int] = (0, 2**31 - 1)


LIMITS = Limits()


@dataclass(frozen=True)
class RunRequest:
    """A checked wish: what to race, and how. ``model`` and ``precision`` None are the defaults."""

    prompt: str
    cett: float = 0.2
    max_new_tokens: int = 128
    model: str | None = None
    precision: str | None = None
    online: bool = False
    weighted: bool = False
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    scale: tuple[float, ...] = ()
    exempt: tuple[int, ...] = ()


def checked(
    offers: Offers,
    *,
    prompt: Any,
    cett: Any = 0.2,
    max_new_tokens: Any = 128,
    model: Any = None,
    precision: Any = None,
    online: Any = False,
    weighted: Any = False,
    temperature: Any = 0.0,
    top_p: Any = 1.0,
    seed: Any = 0,
    scale: Any = None,
    exempt: Any = "",
    limits: Limits = LIMITS,
) -> RunRequest:
    """Whatever a browser or an API client sent, as a request within ``limits``.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    top = _number("top-p", top_p, limits.top_p)
    if top == 0:
        raise UserError("top-p is 0, which leaves no token to choose from: use more than 0, up to 1.")
    return RunRequest(
        prompt=_prompt(prompt, limits.prompt_characters),
        cett=_number("The CETT target", cett, limits.cett),
        max_new_tokens=_whole("The number of new tokens", max_new_tokens, (1, limits.max_new_tokens)),
        model=offers.model(model),
        precision=offers.precision(precision),
        online=bool(online),
        weighted=bool(weighted),
        temperature=_number("The temperature", temperature, limits.temperature),
        top_p=top,
        seed=_whole("The seed", seed, limits.seed),
        scale=_scale(scale, limits.scale),
        exempt=layer_list(exempt),
    )


def layer_list(text: Any) -> tuple[int, ...]:
    """Layer numbers from ``"0, 3, 27-29"``.

    Raises:
        UserError: anything else is in there.
    """
    layers: set[int] = set()
    for part in filter(None, re.split(r"[\s,;]+", str(text or "").replace("–", "-"))):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, flags=re.ASCII)
        if match is None:
            raise UserError("Layers kept dense: write layer numbers such as 0, 3, 27-29.")
        first = int(match[1])
        layers.update(range(first, int(match[2] or first) + 1))
    return tuple(sorted(layers))


def _prompt(value: Any, most: int) -> str:
    # Half of a surrogate pair can arrive in JSON; no tokenizer takes it.
    text = value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else ""
    if not text.strip():
        raise UserError("The prompt is empty: type a question or the beginning of a text.")
    if len(text) > most:
        raise UserError(f"The prompt has {len(text):,} characters; this page takes at most {most:,}: shorten it.")
    return text


def _number(what: str, value: Any, bounds: tuple[float, float]) -> float:
    low, high = bounds
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:  # false for NaN too
        raise UserError(f"{what} must be a number from {low:g} to {high:g}.")
    return number


def _whole(what: str, value: Any, bounds: tuple[int, int]) -> int:
    low, high = bounds
    try:
        whole = int(value)
        exact = whole == float(value)
    except (TypeError, ValueError, OverflowError):
        whole, exact = 0, False
    if not exact or not low <= whole <= high:
        raise UserError(f"{what} must be a whole number from {low:,} to {high:,}.")
    return whole


def _scale(value: Any, bounds: tuple[float, float]) -> tuple[float, ...]:
    """Factors, or () where all of them are 1: a model of any depth then takes them."""
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise UserError("Per-layer scaling must be a list of numbers, one per layer.")
    factors = tuple(_number("Every per-layer factor", factor, bounds) for factor in value)
    return () if all(factor == 1 for factor in factors) else factors
