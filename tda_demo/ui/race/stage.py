"""The race as the stage component shows it: every slot of its template, filled with text from a ``RaceView``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ... import metrics
from .. import wording
from .view import ARMS, RaceView

_CHOSEN = {True: "neurons chosen once, from the prompt", False: "neurons chosen anew while writing"}
_PROMISE = (
    "Type a prompt and press Enter. The model reads it once with every neuron; then it writes twice, and here you see "
    "how much faster the second text came, where the two part, and which neurons each layer used."
)


def stage(view: RaceView) -> dict[str, Any]:
    """JSON-ready: ``phase``; ``slots``, text by slot name; ``texts``, what each arm wrote and where the two part;
    ``track``, each arm's bar 0..1 and the mark on it.
    """
    return {
        "phase": view.phase,
        "slots": {**_names(view), **_hero(view), **_costs(view), **_quality(view), **_arms(view)},
        "texts": {arm: {"text": view.arm(arm).text, "part": _part(view, arm)} for arm in ARMS},
        "track": {arm: _bar(view, arm) for arm in ARMS},
    }


def _names(view: RaceView) -> dict[str, str]:
    return {
        "name": view.name,
        "lane": view.name[0].upper() + view.name[1:],
        "chosen": "" if view.prompt is None else _CHOSEN[view.prompt.active is not None],
    }


def _hero(view: RaceView) -> dict[str, str]:
    speedup = view.speedup
    bound = view.byte_bound
    efficiency = metrics.efficiency(speedup.median, bound) if speedup and bound else None
    return {
        "speedup": wording.times(speedup.median if speedup else None),
        "interval": wording.interval(speedup) if view.prompt else "",
        "bound": wording.times(bound),
        "efficiency": wording.percent(efficiency),
        "lead": _lead(view),
        "verdict": _verdict(view),
        "budget": _budget(view),
    }


def _verdict(view: RaceView) -> str:
    result = view.result
    if result is None:
        return _PROMISE if view.phase == "empty" else ""
    return wording.verdict(
        result.speedup,
        result.byte_bound,
        float(np.mean(result.sparsity)),
        result.dense.step_ms,
        result.sparse.step_ms,
        view.name,
    )


def _budget(view: RaceView) -> str:
    found = view.found
    if found is None:
        return ""
    quality = view.result.quality if view.result else None
    if found.budget.of == "kl":
        return wording.kl_budget(
            found.budget.most, found.setting, found.value, found.kl, quality.kl if quality else None
        )
    return wording.mlp_budget(found.budget.most, found.setting, found.value, found.mlp_share, view.mlp_share)


def _costs(view: RaceView) -> dict[str, str]:
    read = view.prompt
    if read is None:
        return {"sparsity": wording.NONE, "prompt": wording.NONE, "prompt_parts": "read + choose + pack"}
    return {
        "sparsity": wording.percent(view.sparsity, 1),
        "prompt": wording.duration(read.prefill_ms + read.selection_ms + read.packing_ms),
        "prompt_parts": " + ".join(
            f"{verb} {wording.duration(ms)}"
            for verb, ms in (("read", read.prefill_ms), ("choose", read.selection_ms), ("pack", read.packing_ms))
        ),
    }


def _quality(view: RaceView) -> dict[str, str]:
    quality = view.result.quality if view.result else None
    if quality is None:
        return {"agreement": wording.NONE, "kl": wording.NONE, "parting": _parting(view)}
    return {
        "agreement": wording.percent(quality.agreement, 1),
        "kl": f"{quality.kl:.3f}",
        "parting": _parting(view),
    }


def _parting(view: RaceView) -> str:
    quality = view.result.quality if view.result else None
    if quality is None:
        return wording.NONE
    return "never" if quality.divergence is None else f"token {quality.divergence + 1}"


def _arms(view: RaceView) -> dict[str, str]:
    slots = {}
    for arm in ARMS:
        state = view.arm(arm)
        slots[f"{arm}.rate"] = wording.rate(metrics.tokens_per_second(state.step_ms))
        slots[f"{arm}.tokens"] = wording.count(state.tokens, "token")
        slots[f"{arm}.time"] = wording.duration(sum(state.step_ms)) if state.step_ms else wording.NONE
        slots[f"{arm}.state"] = _state(view, arm)
    return slots


def _state(view: RaceView, arm: str) -> str:
    if view.arm(arm).ended:
        return wording.ending(view.arm(arm).ended)
    return {"running": "writing", "reading": "reading the prompt", "queued": "waiting", "loading": "waiting"}.get(
        view.phase, ""
    )


def _lead(view: RaceView) -> str:
    """Who is ahead, in tokens at equal decode time."""
    if view.overtaken is not None:
        behind, tokens = view.overtaken
        ahead = "sparse" if behind == "dense" else "dense"
        ended = wording.count(view.arm(ahead).tokens, "token")
        return f"When {view.arm_name(ahead)} ended, at {ended}, {view.arm_name(behind)} had written {tokens:,}"
    lead = view.sparse.tokens - view.dense.tokens
    if not view.prompt or abs(lead) <= 1:
        return "Equal decode time for both: the faster arm pulls ahead"
    ahead = view.name if lead > 0 else "dense"
    return f"Ahead by {wording.count(abs(lead), 'token')} at equal decode time: {ahead}"


def _bar(view: RaceView, arm: str) -> dict[str, float | None]:
    whole = view.request.max_new_tokens if view.request else 1
    mark = view.overtaken[1] / whole if view.overtaken and view.overtaken[0] == arm else None
    return {"share": view.arm(arm).tokens / whole, "mark": mark}


def _part(view: RaceView, arm: str) -> int | None:
    """Where the texts part, in UTF-16 units: what a browser counts a string in."""
    quality = view.result.quality if view.result else None
    if quality is None or quality.divergence_at is None:
        return None
    return len(view.arm(arm).text[: quality.divergence_at].encode("utf-16-le", "surrogatepass")) // 2
