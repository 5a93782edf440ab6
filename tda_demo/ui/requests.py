"""What one visitor may ask of a public page: the models on offer, the caps, and the check of a request against them.

A public page loads nothing that is not named here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

from ..methods import METHODS, Method
from ..methods.settings import parse
from ..model.precision import Device, default_precision, precisions_on
from ..support.errors import UserError
from .models import CATALOGUE, EMBEDDED, has_nvidia_driver, is_zero_gpu_space, label

HUB_MODELS = tuple(entry.name for entry in CATALOGUE if entry.name != EMBEDDED)
AUTOMATIC = "automatic"


@dataclass(frozen=True)
class Offers:
    """``any_model``: the owner lets visitors name any hub id or local path. Never true on a Space.

    ``device`` is where models are expected to run; ``models.Models``, which has torch, knows.
    """

    any_model: bool = False
    device: Device = "cpu"
    models: tuple[str, ...] = (EMBEDDED, *HUB_MODELS)

    @classmethod
    def here(cls, allow_any_model: bool) -> Offers:
        """The offers of this process: on a Space (``SPACE_ID`` is set) only the list, whatever was asked."""
        device: Device = "cuda" if has_nvidia_driver() or is_zero_gpu_space() else "cpu"
        return cls(any_model=allow_any_model and "SPACE_ID" not in os.environ, device=device)

    @property
    def precisions(self) -> tuple[str, ...]:
        """What the page lists, after the automatic choice from the fewest bytes to the most."""
        return (AUTOMATIC, *reversed(precisions_on(self.device)))

    @property
    def choices(self) -> list[tuple[str, str]]:
        """What the page lists: a model with its estimate of memory, and its name."""
        return [(label(name, self.device), name) for name in self.models]

    @property
    def hint(self) -> str:
        """One line under the list: where models run, and what the sizes are."""
        if self.device == "cuda":
            return f"Sizes are upper estimates of GPU memory in {default_precision(self.device)}."
        sizes = f"Sizes are upper estimates of memory in {default_precision(self.device)}."
        return f"No CUDA GPU here: models run on the CPU. {sizes}"

    def model(self, name: Any) -> str | None:
        """What ``load_model`` takes for ``name``: None for the embedded model.

        Raises:
            UserError: the name is not on the list.
        """
        if name in (None, "", EMBEDDED):
            return None
        if not isinstance(name, str) or not (self.any_model or name in self.models):
            raise UserError(f"This page does not offer that model: choose one of {', '.join(self.models)}.")
        return name

    def precision(self, name: Any) -> str | None:
        """What ``load_model`` takes for ``name``: None for the automatic choice.

        Raises:
            UserError: the precision is not on the list.
        """
        if name in (None, "", AUTOMATIC):
            return None
        if name not in self.precisions:
            raise UserError(f"This page does not offer that precision: choose one of {', '.join(self.precisions)}.")
        return name


@dataclass(frozen=True)
class Limits:
    """Caps on one request and on the page as a whole.

    Seconds count from when the model is held; those to prepare are of tables and training that are made once and kept.
    """

    prompt_characters: int = 8_000
    prompt_tokens: int = 1_024
    max_new_tokens: int = 512
    seconds_per_run: float = 25.0
    seconds_to_prepare: float = 120.0
    waiting_runs: int = 8
    loaded_models: int = 2
    setting_characters: int = 4_000
    factor: tuple[float, float] = (0.0, 2.0)
    kl: tuple[float, float] = (0.0, 2.0)
    mlp_percent: tuple[float, float] = (0.0, 100.0)
    temperature: tuple[float, float] = (0.0, 2.0)
    top_p: tuple[float, float] = (0.0, 1.0)
    seed: tuple[int, int] = (0, 2**31 - 1)


LIMITS = Limits()

_STANDARD = next(iter(METHODS.values()))()
NO_RIVAL = "dense"  # what a method races against when it races against no other

# What settings of these types are, whatever the method: a factor on each layer, and a choice of layers.
Factors = tuple[float, ...]
Layers = tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """What a method may cost: at most ``most`` nats per token of KL, or that share 0..1 of the MLP weight bytes."""

    of: Literal["kl", "mlp_share"]
    most: float


@dataclass(frozen=True)
class RunRequest:
    """What to race, within the limits, and how. ``model`` and ``precision`` None are the defaults.

    How many tokens the prompt has is known once the model is: ``most_prompt_tokens`` is held against them then.
    ``rival`` is None without one; a ``budget`` puts the dials of both where it is used up, each on its own.
    """

    prompt: str
    method: Method = _STANDARD
    budget: Budget | None = None
    max_new_tokens: int = 128
    model: str | None = None
    precision: str | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    rival: Method | None = None
    most_prompt_tokens: int = LIMITS.prompt_tokens


def parse_request(
    offers: Offers,
    *,
    prompt: Any,
    method: Any = RunRequest.method.name,
    settings: Any = None,
    by: Any = "setting",
    kl: Any = 0.3,
    mlp_percent: Any = 70,
    max_new_tokens: Any = 128,
    model: Any = None,
    precision: Any = None,
    temperature: Any = 0.0,
    top_p: Any = 1.0,
    seed: Any = 0,
    rival: Any = NO_RIVAL,
    rival_settings: Any = None,
    limits: Limits = LIMITS,
) -> RunRequest:
    """Whatever a browser, a link or an API client sent, as a request within ``limits``.

    ``by`` says what sets the methods' dials: "setting" their own values, "quality" ``kl``, "bytes" ``mlp_percent``.

    Raises:
        UserError: the first thing that is wrong with it, in one sentence.
    """
    top = _parse_number("top-p", top_p, limits.top_p)
    if top == 0:
        raise UserError("top-p is 0, which leaves no token to choose from: use more than 0, up to 1.")
    kind = method_class(method)
    rival_class = None if rival in (None, NO_RIVAL) else method_class(rival)
    if rival_class is kind:
        raise UserError(f"{kind.__name__} cannot race itself: choose another method for it to race against.")
    if rival_class is None and rival_settings:
        raise UserError("There are settings of a rival, but no rival: name the method to race against.")
    return RunRequest(
        prompt=_parse_prompt(prompt, limits.prompt_characters),
        method=_parse_method(kind, settings or {}, limits),
        budget=_parse_budget(by, kl, mlp_percent, limits),
        max_new_tokens=_parse_integer("The number of new tokens", max_new_tokens, (1, limits.max_new_tokens)),
        model=offers.model(model),
        precision=offers.precision(precision),
        temperature=_parse_number("The temperature", temperature, limits.temperature),
        top_p=top,
        seed=_parse_integer("The seed", seed, limits.seed),
        rival=rival_class and _parse_method(rival_class, rival_settings or {}, limits),
        most_prompt_tokens=limits.prompt_tokens,
    )


def layer_list(text: Any, name: str = "layers") -> tuple[int, ...]:
    """Layer numbers from ``"0, 3, 27-29"``.

    Raises:
        UserError: anything else is in there.
    """
    layers: set[int] = set()
    for part in filter(None, re.split(r"[\s,;]+", str(text or "").replace("–", "-"))):
        match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part, flags=re.ASCII)
        if match is None:
            raise UserError(f"{name}: write layer numbers such as 0, 3, 27-29.")
        first = int(match[1])
        layers.update(range(first, int(match[2] or first) + 1))
    return tuple(sorted(layers))


def method_class(name: Any) -> type[Method]:
    """The method of that ``name``.

    Raises:
        UserError: there is none.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise UserError(f"This page does not offer that method: choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def _parse_prompt(value: Any, most: int) -> str:
    text = replace_surrogates(value) if isinstance(value, str) else ""
    if not text.strip():
        raise UserError("The prompt is empty: type a question or the beginning of a text.")
    if len(text) > most:
        raise UserError(f"The prompt has {len(text):,} characters; this page takes at most {most:,}: shorten it.")
    return text


def number_within(value: Any, low: float, high: float) -> float | None:
    """The number that ``value`` is or spells; None where it is none, or not from ``low`` to ``high``."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if low <= number <= high else None  # false for NaN too


def integer_within(value: Any, low: float, high: float) -> int | None:
    """``number_within`` as an integer, and None where it is not a whole number."""
    number = number_within(value, low, high)
    return int(number) if number is not None and number.is_integer() else None


def _parse_number(what: str, value: Any, bounds: tuple[float, float]) -> float:
    if (number := number_within(value, *bounds)) is None:
        raise UserError(f"{what} must be a number from {bounds[0]:g} to {bounds[1]:g}.")
    return number


def _parse_integer(what: str, value: Any, bounds: tuple[int, int]) -> int:
    if (number := integer_within(value, *bounds)) is None:
        raise UserError(f"{what} must be a whole number from {bounds[0]:,} to {bounds[1]:,}.")
    return number


def _parse_budget(by: Any, kl: Any, mlp_percent: Any, limits: Limits) -> Budget | None:
    match by:
        case "setting":
            return None
        case "quality":
            return Budget("kl", _parse_number("The KL budget", kl, limits.kl))
        case "bytes":
            return Budget(
                "mlp_share",
                _parse_number("The budget of MLP weight bytes, in percent,", mlp_percent, limits.mlp_percent) / 100,
            )
    raise UserError("A method can be set by setting, by quality or by bytes.")


def _parse_method(kind: type[Method], wishes: Any, limits: Limits) -> Method:
    """``kind`` with the settings ``wishes``: values of a setting's own type, or what the command line reads as one.

    One factor per layer, all 1, is no wish: it fits any model.
    """
    if not isinstance(wishes, Mapping):
        raise UserError(f'The settings must be names and values, for example {{"{kind.dial.setting}": 0.2}}.')
    types = get_type_hints(kind)
    given = {str(name): value for name, value in wishes.items() if type(value) is types.get(str(name))}
    others = {str(name): value for name, value in wishes.items() if str(name) not in given}
    assignments = [f"{name}={_spell(name, value, types.get(name))}" for name, value in others.items()]
    if max(map(len, assignments), default=0) > limits.setting_characters:
        raise UserError(f"A setting is too long: this page takes at most {limits.setting_characters:,} characters.")
    given |= parse(kind, map(replace_surrogates, assignments))
    for name in [name for name in given if types[name] == Factors]:
        given[name] = tuple(_parse_number(f"Every factor of {name}", factor, limits.factor) for factor in given[name])
        if set(given[name]) == {1}:
            del given[name]
    return kind(**given)


def _spell(name: str, value: Any, kind: Any) -> str:
    """A value as the command line spells it; whole numbers and layer ranges may be written as people write them."""
    if kind == Layers and isinstance(value, str):
        value = layer_list(value, name)
    if isinstance(value, list | tuple):
        return ",".join(str(item) for item in value)
    if kind is int and isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value)


def replace_surrogates(text: str) -> str:
    """``text`` with every lone half of a surrogate pair replaced: JSON can bring one, which no tokenizer takes."""
    return text.encode("utf-8", "replace").decode("utf-8")
