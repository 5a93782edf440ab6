"""The race as the stage component shows it: every slot of its template, filled with text from a ``RaceView``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...methods import METHODS, Method
from ...race.result import against_control
from ...stats import metrics
from .. import wording
from .view import ARMS, MethodView, RaceView

if TYPE_CHECKING:
    from ...race.result import RaceQuality, RaceResult

_PROMISE = "Type a prompt and press Enter: the faster text pulls ahead here."


def stage(view: RaceView) -> dict[str, Any]:
    """JSON-ready: ``phase``; ``leader``, the arm that is ahead, None while none is; ``undecided``, the methods whose
    speedup is not known to be one or the other side of 1; ``slots``, text by slot name, the rival's as ``rival.`` and
    the method's name for it; ``texts``, what each arm wrote and where it parts from dense (dense from the method);
    ``track``, each arm's bar 0..1 and the mark on it.
    """
    rival = {f"rival.{slot}": text for slot, text in _method(view.rival).items()}
    sentences = {"lead": _lead(view), "verdict": _verdict(view), "duel": _duel(view), "budget": _budget(view)}
    slots = {**_method(view.sparse), **rival, "note": _notes(view), **sentences, **_arms(view)}
    if not view.rival.method:
        slots["rival.lane"] = "Rival"
    return {
        "phase": view.phase,
        "leader": _leader(view),
        "undecided": [arm for arm in ARMS if arm != "dense" and _is_undecided(view.method(arm))],
        "slots": slots,
        "texts": {arm: {"text": view.arm(arm).text, "part": _part(view, arm)} for arm in ARMS},
        "track": {arm: _bar(view, arm) for arm in ARMS},
    }


def _method(arm: MethodView) -> dict[str, str]:
    """What is known of one method."""
    speedup, bound, quality = arm.speedup, arm.byte_bound, arm.quality
    return {
        "name": arm.name,
        "lane": arm.name[0].upper() + arm.name[1:],
        "chosen": "" if arm.prompt is None else wording.chosen(arm.method),
        "speedup": wording.times(speedup.ratio if speedup else None),
        "interval": wording.interval(speedup) if arm.prompt else "",
        "bound": wording.times(bound),
        "efficiency": wording.percent(metrics.decided_efficiency(speedup, bound)),
        "sparsity_of": f"{(arm.method or Method).leaves_out} {wording.left_out(arm.method)}, mean",
        **_costs(arm),
        "agreement": wording.percent(quality.agreement if quality else None, 1),
        "kl": f"{quality.kl:.3f}" if quality else wording.NONE,
        "parting": _parting(quality),
    }


def _is_undecided(arm: MethodView) -> bool:
    return arm.speedup is not None and arm.speedup.undecided


def _costs(arm: MethodView) -> dict[str, str]:
    read = arm.prompt
    if read is None:
        return {"sparsity": wording.NONE, "prompt": wording.NONE, "prompt_parts": "read + choose + pack"}
    return {
        "sparsity": wording.percent(arm.sparsity, 1),
        "prompt": wording.duration(read.prefill_ms + read.selection_ms + read.packing_ms),
        "prompt_parts": " + ".join(
            f"{verb} {wording.duration(ms)}"
            for verb, ms in (("read", read.prefill_ms), ("choose", read.selection_ms), ("pack", read.packing_ms))
        ),
    }


def _parting(quality: RaceQuality | None) -> str:
    if quality is None:
        return wording.NONE
    return "never" if quality.divergence is None else f"token {quality.divergence + 1}"


def _verdict(view: RaceView) -> str:
    result, method = view.result, view.sparse.method
    if result is None or method is None:
        return ""
    times, name = (result.dense.step_ms, result.sparse.step_ms), view.sparse.name
    sparsity, leaves_out = float(np.mean(result.sparsity)), method.leaves_out
    verdict = wording.verdict(
        result.speedup, result.byte_bound, sparsity, *times, name, leaves_out, has_rest=wording.has_rest(method)
    )
    cost = (
        ""
        if result.quality is None or view.rival.method
        else wording.price(result.quality.kl, result.quality.agreement)
    )
    return " ".join(filter(None, [verdict, wording.totals(result.speedup, *times, name), cost if sparsity > 0 else ""]))


def _duel(view: RaceView) -> str:
    """The two methods beside each other, at what each really read."""
    result = view.result
    if result is None or result.rival is None:
        return ""
    summaries = [
        wording.method_summary(arm.name, arm.byte_bound, arm.speedup, arm.quality.kl if arm.quality else None)
        for arm in view.methods
    ]
    faster = wording.duel(view.sparse.name, view.rival.name, result.speedup_over_rival)
    better = against_control(result, lambda method: METHODS[method].__name__)
    return " ".join(filter(None, [*summaries, faster, better]))


def _notes(view: RaceView) -> str:
    """What the methods took to make."""
    notes = [(arm.name, arm.result.note) for arm in view.methods if arm.result and arm.result.note]
    return " ".join(f"{name}: {note}." for name, note in notes)


def _budget(view: RaceView) -> str:
    spent = [(arm.name, _spent(arm, view.result)) for arm in view.methods if arm.found]
    return (
        " ".join(f"{name}: {text}" for name, text in spent) if view.rival.method else "".join(text for _, text in spent)
    )


def _spent(arm: MethodView, result: RaceResult | None) -> str:
    """What the budget came to."""
    chosen = arm.found
    assert chosen is not None, "only of a method that was given a budget"
    if chosen.budget.of == "kl":
        kl = arm.quality.kl if arm.quality else None
        return wording.kl_budget(chosen.budget.most, chosen.setting, chosen.value, chosen.kl, kl)
    share = arm.mlp_share(result.dense.weight_bytes) if result else None
    return wording.mlp_budget(chosen.budget.most, chosen.setting, chosen.value, chosen.mlp_share, share)


def _arms(view: RaceView) -> dict[str, str]:
    slots = {}
    for arm in ARMS:
        state = view.arm(arm)
        slots[f"{arm}.rate"] = wording.rate(metrics.tokens_per_second(state.step_ms))
        slots[f"{arm}.tokens"] = wording.count(state.tokens, "token")
        slots[f"{arm}.time"] = wording.duration(sum(state.step_ms)) if state.step_ms else wording.NONE
        slots[f"{arm}.state"] = _state(view, arm) if arm in view.racing else ""
    return slots


def _state(view: RaceView, arm: str) -> str:
    if view.arm(arm).ended:
        return wording.ending(view.arm(arm).ended)
    return {"running": "writing", "reading": "reading the prompt", "queued": "waiting", "loading": "waiting"}.get(
        view.phase, ""
    )


def _leader(view: RaceView) -> str | None:
    """The arm with the most tokens, now or when the first one ended; a token more or less is none ahead."""
    tokens = view.first_end[1] if view.first_end else {name: arm.tokens for name, arm in view.racing.items()}
    if view.sparse.prompt is None or max(tokens.values()) - min(tokens.values()) <= 1:
        return None
    return max(tokens, key=lambda arm: tokens[arm])


def _lead(view: RaceView) -> str:
    """Who is ahead, in tokens at equal decode time."""
    if view.phase == "empty":
        return _PROMISE
    if view.first_end is not None:
        first, tokens = view.first_end
        if tokens[first] == 1:
            return "One token, which the prompt itself decides: nothing to race for"
        others = [f"{view.arm_name(arm)} had written {tokens[arm]:,}" for arm in view.racing if arm != first]
        ended = wording.count(tokens[first], "token")
        return f"When {view.arm_name(first)} ended, at {ended}, {' and '.join(others)}"
    leader = _leader(view)
    if leader is None:
        return f"Equal decode time for {'all' if view.rival.method else 'both'}: the faster arm pulls ahead"
    tokens = {view.arm_name(name): arm.tokens for name, arm in view.racing.items()}
    if view.rival.method:
        return f"At equal decode time: {wording.standing(tokens)}"
    lead = max(tokens.values()) - min(tokens.values())
    name = view.arm_name(leader)
    is_ahead = "was" if view.over else "is"
    return f"{name[0].upper()}{name[1:]} {is_ahead} {wording.count(lead, 'token')} ahead at equal decode time"


def _bar(view: RaceView, arm: str) -> dict[str, float | None]:
    whole = view.request.max_new_tokens if view.request else 1
    behind = view.first_end is not None and view.first_end[0] != arm and arm in view.racing
    mark = view.first_end[1][arm] / whole if view.first_end and behind else None
    return {"share": view.arm(arm).tokens / whole, "mark": mark}


def _part(view: RaceView, arm: str) -> int | None:
    """Where the text parts from dense, in UTF-16 units: what a browser counts a string in."""
    quality = (view.rival if arm == "rival" else view.sparse).quality
    if quality is None or quality.divergence_at is None:
        return None
    return len(view.arm(arm).text[: quality.divergence_at].encode("utf-16-le", "surrogatepass")) // 2
