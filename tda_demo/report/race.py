"""A race as HTML: what the page showed of it, figure by figure, from a record of everything it drew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ..methods import METHODS
from ..methods.base import Method
from ..race.result import ArmResult, MethodResult, RaceResult
from ..stats import metrics
from . import svg
from .page import figure, numbers, page, pairs, section

if TYPE_CHECKING:
    from ..race import PromptRead


_SPARSE, _INK = svg.COLOURS[1], "currentColor"
_ACTIVE = np.array([[0xC9, 0xCC, 0xD1], [0xC4, 0x5F, 0x12]], np.uint8)  # of a neuron: skipped, computed
_NONE = "–"


@dataclass(frozen=True, eq=False)
class Trace:
    """Which neurons fired and which were computed, a layer and a token at a time.

    ``prompt_fired`` int64 [prompt tokens, layers] and ``fired``, int64 [layers] a step of the sparse arm, belong to
    ``prompt_tokens`` and ``tokens``; ``indices`` int64 [kept] are each layer's active neurons of ``d_ff``, None where
    they are not the same for every step: ``fired`` is then what it computed. The times of reading the prompt are in ms.
    """

    prompt_tokens: tuple[str, ...]
    prompt_fired: np.ndarray
    tokens: tuple[str, ...]
    fired: tuple[np.ndarray, ...]
    indices: tuple[np.ndarray, ...] | None
    d_ff: tuple[int, ...]
    prefill_ms: float
    selection_ms: float
    packing_ms: float

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "prompt_tokens": list(self.prompt_tokens),
            "prompt_fired": self.prompt_fired.tolist(),
            "tokens": list(self.tokens),
            "fired": [step.tolist() for step in self.fired],
            "active": self.indices and [layer.tolist() for layer in self.indices],
            "d_ff": list(self.d_ff),
            "prefill_ms": self.prefill_ms,
            "selection_ms": self.selection_ms,
            "packing_ms": self.packing_ms,
        }

    def computed(self) -> np.ndarray:
        """How many neurons each step computed, int64 [steps, layers]."""
        if self.indices is None:
            return np.array(self.fired, dtype=np.int64).reshape(-1, len(self.d_ff))
        return np.tile([len(layer) for layer in self.indices], (len(self.fired), 1))

    @property
    def kept(self) -> list[float]:
        """Neurons a step computes of each layer, the mean where steps differ; all of them before there is a step."""
        if self.indices is not None:
            return [len(layer) for layer in self.indices]
        return self.computed().mean(axis=0).tolist() if self.fired else list(self.d_ff)


@dataclass(frozen=True, eq=False)
class RaceRecord:
    """``decoding`` are the settings of both arms by name; ``date`` is the day, UTC.

    ``mlp_share`` is the share 0..1 of the MLP weight bytes that a sparse step reads, ``rival_mlp_share`` that of the
    rival's; None where it is not known.
    """

    prompt: str
    decoding: Mapping[str, Any]
    result: RaceResult
    trace: Trace
    mlp_share: float | None
    date: str = field(default_factory=lambda: datetime.now(UTC).date().isoformat())
    rival_mlp_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The race's own JSON, with the prompt, the decoding settings, the day and the trace."""
        race = {
            "prompt": self.prompt,
            "decoding": dict(self.decoding),
            "date": self.date,
            "mlp_share": self.mlp_share,
        }
        rival = {} if self.result.rival is None else {"rival_mlp_share": self.rival_mlp_share}
        return {**race, **self.result.to_json(), **rival, "trace": self.trace.to_json()}


def trace_of(read: PromptRead, d_ff: Sequence[int], tokens: Sequence[str], fired: Sequence[np.ndarray]) -> Trace:
    """From what a race says of its prompt, and of each step of the sparse arm: its text, and what fired."""
    active = read.active
    return Trace(
        prompt_tokens=read.tokens,
        prompt_fired=read.fired,
        tokens=tuple(tokens),
        fired=tuple(fired),
        indices=None if active is None else tuple(layer.cpu().numpy() for layer in active.indices),
        d_ff=tuple(d_ff),
        prefill_ms=read.prefill_ms,
        selection_ms=read.selection_ms,
        packing_ms=read.packing_ms,
    )


def race_report(record: RaceRecord) -> str:
    """One race as HTML text; model and user text is escaped, and nothing is fetched."""
    result, trace = record.result, record.trace
    return page(
        f"Race: {result.model}, {' against '.join(raced.method for raced in result.methods)}",
        f"{record.date}, {result.machine}, weights in {result.precision}",
        [
            numbers(_hero(record)),
            _notes(result),
            _rival(record),
            section("Prompt", f"<pre>{escape(record.prompt)}</pre>"),
            section("Texts", _texts(result)),
            section("Step times", _times(result)),
            section("Layers", _layers(result, trace)),
            section("Neurons", _neurons(trace)),
            section("Settings", pairs({**_settings(result), **record.decoding})),
            section("Environment", pairs({"engine": result.engine, "device": result.device, **result.environment})),
        ],
        record.to_json(),
    )


def _hero(record: RaceRecord) -> list[tuple[str, str, str]]:
    result, trace = record.result, record.trace
    parts = (("read", trace.prefill_ms), ("choose", trace.selection_ms), ("pack", trace.packing_ms))
    spent = " + ".join(f"{name} {ms:.0f} ms" for name, ms in parts)
    return [
        *_figures(result, record.mlp_share, f"{result.prompt_tokens:,} tokens: {spent}"),
        *(
            (f"{name}, tokens/s", _rate(arm), f"{arm.tokens:,} tokens in {sum(arm.step_ms) / 1000:.2f} s; {arm.ended}")
            for name, arm in result.arms
        ),
        *_lead(result),
    ]


def _figures(raced: RaceResult | MethodResult, mlp_share: float | None, prompt: str) -> list[tuple[str, str, str]]:
    """What was measured of a method; ``prompt`` is what its prompt time was spent on."""
    quality, leaves_out = raced.quality, METHODS.get(raced.method, Method).leaves_out
    equal = metrics.is_equal_work(float(np.mean(raced.sparsity)), raced.byte_bound)
    efficiency = None if equal else metrics.decided_efficiency(raced.speedup, raced.byte_bound)
    beyond = "; more than the bytes allow is no gain" if metrics.is_beyond(raced.speedup, raced.byte_bound) else ""
    parting = _NONE
    if quality:
        parting = "never" if quality.divergence is None else f"token {quality.divergence + 1}"
    return [
        ("speedup", *_speedup(raced.speedup, equal=equal)),
        (
            "byte bound",
            f"{raced.byte_bound:.2f}×" if raced.byte_bound else _NONE,
            "the most that reading fewer weight bytes allows",
        ),
        ("efficiency", f"{efficiency:.0%}" if efficiency else _NONE, f"speedup / byte bound{beyond}"),
        ("sparsity", f"{np.mean(raced.sparsity):.1%}", f"{leaves_out}, mean over layers"),
        ("MLP bytes", f"{mlp_share:.1%}" if mlp_share else _NONE, "read by a sparse step"),
        ("prompt", f"{raced.sparse.prefill_ms:.0f} ms", prompt),
        ("agreement", f"{quality.agreement:.1%}" if quality else _NONE, "equal most likely tokens"),
        ("KL", f"{quality.kl:.3f}" if quality else _NONE, "nats per token, from dense"),
        ("texts part", parting, "first token that differs from dense"),
    ]


def _speedup(speed: metrics.Speedup | None, *, equal: bool = False) -> tuple[str, str]:
    if speed is None:
        return _NONE, "too few steps"
    if speed.doubt:
        return _NONE, speed.doubt
    meaning = "; at equal work" if equal else "; no difference was measured" if speed.undecided else ""
    return f"{speed.ratio:.2f}×", f"95 % interval {speed.low:.2f}–{speed.high:.2f}, n = {speed.n}{meaning}"


def _notes(result: RaceResult) -> str:
    """What the methods took to make."""
    notes = [f"{raced.method}: {raced.note}" for raced in result.methods if raced.note]
    return "".join(f'<p class="lead">{escape(note)}.</p>' for note in notes)


def _rival(record: RaceRecord) -> str:
    result, rival = record.result, record.result.rival
    if rival is None:
        return ""
    over = (f"{result.method} over {rival.method}", *_speedup(result.speedup_over_rival))
    figures = _figures(rival, record.rival_mlp_share, "read + choose + pack")
    return section(f"Its rival: {rival.method}", numbers([*figures, over]))


def _settings(result: RaceResult) -> dict[str, Any]:
    settings = {"method": result.method, **result.settings}
    if result.rival is None:
        return settings
    rival = {f"rival's {name}": value for name, value in result.rival.settings.items()}
    return {**settings, "rival": result.rival.method, **rival}


def _lead(result: RaceResult) -> list[tuple[str, str, str]]:
    """Who was ahead at equal decode time: what all had written when the first one ended."""
    first = result.first_end
    if first is None:
        return []
    arms = dict(zip(first.tokens, (name for name, _ in result.arms), strict=True))
    *others, last = arms.values()
    tokens = " : ".join(str(count) for count in first.tokens.values())
    return [("at equal decode time", tokens, f"tokens of {', '.join(others)} and {last} when {arms[first.arm]} ended")]


def _rate(arm: ArmResult) -> str:
    return _NONE if arm.tokens_per_second is None else f"{arm.tokens_per_second:.1f}"


def _texts(result: RaceResult) -> str:
    """Each with the place where it parts from dense; dense with the method's."""
    parts = [raced.quality.divergence_at if raced.quality else None for raced in (result, *result.methods)]
    return '<div class="two">' + "".join(
        f"<div><h3>{escape(name)}</h3><pre>{_mark_parting(arm.text, part)}</pre></div>"
        for (name, arm), part in zip(result.arms, parts, strict=True)
    ) + "</div>"  # fmt: skip


def _mark_parting(text: str, part: int | None) -> str:
    if part is None:
        return escape(text)
    return f'{escape(text[:part])}<b class="part">≠ texts part here</b>{escape(text[part:])}'


def _times(result: RaceResult) -> str:
    series = [
        svg.Series(name, list(enumerate(arm.step_ms, start=2)), colour, shape="")
        for (name, arm), colour in zip(result.arms, svg.COLOURS, strict=False)
    ]
    drawn = svg.plot(series, "token", "ms a step")
    return figure("Time of every step", svg.legend(series) + drawn) if drawn else ""


def _layers(result: RaceResult, trace: Trace) -> str:
    kept = _percent(trace.kept, trace.d_ff)
    notes = [
        f"layer {layer}: {kept_neurons:,.0f} of {width:,} neurons"
        for layer, (kept_neurons, width) in enumerate(zip(trace.kept, trace.d_ff, strict=True))
    ]
    drawn = figure("Neurons kept", svg.bars(kept, notes, "layer", "% of the layer's neurons", _SPARSE))
    if result.quality:
        errors = svg.Series("realised CETT", list(enumerate(result.quality.cett)), _INK, shape="diamond", joined=False)
        drawn += figure("Realised CETT", svg.plot([errors], "layer", "relative output error"))
    return f'<div class="two">{drawn}</div>'


def _neurons(trace: Trace) -> str:
    most = np.array(trace.d_ff)
    fired = np.concatenate([trace.prompt_fired, np.array(trace.fired, dtype=np.int64).reshape(-1, len(most))])
    computed = np.concatenate([np.tile(most, (len(trace.prompt_fired), 1)), trace.computed()])
    divider = (len(trace.prompt_fired), "prompt", "written")
    maps = "".join(
        figure(title, svg.heatmap(_levels(counts, most).T, svg.cividis(), "token", "layer", divider))
        for title, counts in (("Fired, by layer and token", fired), ("Computed, by layer and token", computed))
    )
    scale = '<p class="lead">Dark blue is none of a layer\'s neurons, yellow all of them.</p>'
    return scale + maps + _sets(trace)


def _sets(trace: Trace) -> str:
    if trace.indices is None:
        return ""
    active = np.zeros((len(trace.d_ff), max(trace.d_ff)), np.uint8)
    for layer, indices in enumerate(trace.indices):
        active[layer, indices] = 1
    drawn = svg.heatmap(active, _ACTIVE, "neuron", "layer")
    return figure("The active sets, neuron by neuron: orange is computed", drawn)


def _levels(counts: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Shares of all neurons as colours, uint8 0..255."""
    return np.rint(255 * counts / most).clip(0, 255).astype(np.uint8)


def _percent(kept: Sequence[float], widths: Sequence[int]) -> list[float]:
    return [100 * metrics.mlp_share([neurons], [width]) for neurons, width in zip(kept, widths, strict=True)]
