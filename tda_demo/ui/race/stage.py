"""The race as the stage component shows it: every slot of its template, filled with text from a ``RaceView``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...methods import METHODS, Method
from ...race.result import against_control, fewer_bits
from ...stats import metrics
from .. import wording
from .heat import heat
from .remedy import remedy
from .view import ARMS, MethodView, Price, RaceView

if TYPE_CHECKING:
    from ...race.result import RaceQuality, RaceResult

DAMAGED = 0.75  # share of unchanged next tokens below which a text is called damaged
_ENOUGH = 20  # positions judged, of which a share can be told
_ONE_TOKEN = "One token, which the prompt itself decides: nothing to race for."
_STOPPED_EARLY = "Stopped before a step was taken: the one token there is, the prompt decides."
_PROMISE = "Press Enter: dense and sparse write the same answer side by side, and the faster one pulls ahead."


def stage(view: RaceView, label: str = "") -> dict[str, Any]:
    """JSON-ready: ``phase``; ``label``, the setting that is raced; ``duel``, whether there are three arms; ``leader``,
    the arm that is ahead, None while none is; ``standing``, "faster", "slower", "even" or "" by method; ``damaged``
    methods and a ``remedy``; ``slots``, text by slot name, the rival's as ``rival.`` and the method's name for it;
    ``texts``, what each arm wrote and where it parts from dense (dense from the method); ``track``, each arm's bar 0..1
    and the mark on it; ``heat``, see ``heat.heat``.
    """
    view.measure()
    rival = {f"rival.{slot}": text for slot, text in _method(view, view.rival).items()}
    slots = {**_method(view, view.sparse), **rival, **_arms(view), "verdict": _verdict(view), "badge": ""}
    if not view.rival.method:
        slots["rival.lane"] = "Rival"
    damaged = [name for name in ARMS[1:] if _is_damaged(view.method(name).price)]
    most = view.request.max_new_tokens if view.request else 0
    return {
        "phase": view.phase,
        "label": label,
        "duel": view.rival.method is not None,
        "leader": view.leader,
        "standing": {name: _standing(view.method(name), view.over) for name in ARMS[1:]},
        "damaged": damaged,
        "remedy": remedy(view.sparse.method) if "sparse" in damaged else None,
        "slots": slots,
        "texts": {arm: {"pieces": list(view.arm(arm).pieces), "part": _part(view, arm)} for arm in ARMS},
        "track": {arm: _bar(view, arm) for arm in ARMS},
        "heat": heat(view.sparse, view.ready.d_ff, most) if view.ready else None,
    }


def _method(view: RaceView, arm: MethodView) -> dict[str, str]:
    """What is known of one method."""
    speedup, bound, quality, price = arm.speedup, arm.byte_bound, arm.quality, arm.price
    number, claim = wording.claim(speedup, view.over, equal=arm.is_equal_work) if arm.prompt else ("", "")
    return {
        "lane": arm.name[0].upper() + arm.name[1:],
        "chosen": "" if arm.prompt is None else wording.chosen(arm.method),
        "speedup": number,
        "claim": claim,
        "sure": wording.sureness(speedup, bound, view.over, equal=arm.is_equal_work) if arm.prompt else "",
        "bound": wording.times(bound),
        "efficiency": wording.percent(None if arm.is_equal_work else metrics.decided_efficiency(speedup, bound)),
        "sparsity_of": f"{(arm.method or Method).leaves_out} {wording.left_out(arm.method)}, mean",
        **_costs(arm),
        **_price(view, price, quality),
        "kl": f"{price.kl:.3f}" if price else wording.NONE,
        "parting": _parting(quality),
    }


def facts_of(view: RaceView) -> list[list[str]]:
    """Names and values of what a race measured and the stage has no room for, of every method."""
    facts = []
    for arm in view.methods:
        slots = _method(view, arm)
        facts += [
            [f"{arm.name}: of the speed limit", slots["efficiency"]],
            ["left out", f"{slots['sparsity']} {slots['sparsity_of']}"],
            ["prompt time", f"{slots['prompt']} ({slots['prompt_parts']})"],
        ]
    if view.result is not None and (plain := fewer_bits(view.result)):
        facts.append(["fewer bits instead", f"{plain}."])
    return facts + ([["in words", details]] if (details := _details(view)) else [])


def _standing(arm: MethodView, over: bool) -> str:
    """As its headline has it: that measures on as long as it may still become a number."""
    if arm.speedup is None or arm.speedup.doubt or not (over or arm.speedup.settled):
        return ""
    if arm.is_equal_work:
        return "even"
    return {1: "faster", -1: "slower", 0: "even"}[arm.speedup.winner]


def _is_damaged(price: Price | None) -> bool:
    return price is not None and price.positions >= _ENOUGH and price.agreement < DAMAGED


def _price(view: RaceView, price: Price | None, quality: RaceQuality | None) -> dict[str, str]:
    if price is None:
        waits = "judging the text as it comes" if view.phase in ("running", "reading") else ""
        return {"agreement": "", "price_what": "", "price_label": waits, "price_note": ""}
    damaged = _is_damaged(price)
    told = price.positions - price.same if damaged else price.same
    return {
        "agreement": f"{told:,} of {price.positions:,}",
        "price_what": "next tokens",
        "price_label": wording.price_label(damaged, so_far=quality is None),
        "price_note": wording.price_note(price.kl, _parting(quality), brief=view.rival.method is not None),
    }


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
    """One sentence: who is ahead, and in the end what the race showed."""
    result, method = view.result, view.sparse.method
    if result is None or method is None:
        return _lead(view)
    if result.dense.tokens == 1:
        return _STOPPED_EARLY if result.dense.ended == "stopped" else _ONE_TOKEN
    price = view.sparse.price
    verdict = wording.verdict(
        result.speedup,
        result.byte_bound,
        float(np.mean(result.sparsity)),
        result.dense.tokens_per_second,
        view.sparse.name,
        method.leaves_out,
        has_rest=wording.has_rest(method),
    )
    if result.rival is not None:
        bounds = result.byte_bound, result.rival.byte_bound
        bound = bounds[0] / bounds[1] if bounds[0] and bounds[1] else None
        return f"{verdict} {wording.duel(view.sparse.name, view.rival.name, result.speedup_over_rival, bound)}"
    cost = wording.price(price.kl, price.same, price.positions) if price and np.any(result.sparsity) else ""
    return " ".join(filter(None, [verdict, cost]))


def _details(view: RaceView) -> str:
    """What the verdict has no room for: the methods side by side, what they took to make, what a budget came to."""
    result = view.result
    parts = [_budget(view)]
    if result is not None:
        if view.first_end is not None and result.dense.tokens > 1:
            parts.append(f"{_at_the_end(view)}.")
        if result.rival is not None:
            parts += [
                wording.method_summary(arm.name, arm.byte_bound, arm.speedup, arm.quality.kl if arm.quality else None)
                for arm in view.methods
            ]
            parts.append(against_control(result, lambda method: METHODS[method].__name__))
        parts += [f"{arm.name}: {arm.result.note}." for arm in view.methods if arm.result and arm.result.note]
        if view.ready is not None and view.ready.calibrating is not None:
            parts.append(f"While nobody races: {wording.progress_text(view.ready.calibrating)}")
    return " ".join(filter(None, parts))


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
        slots[f"{arm}.rate"] = wording.rate(state.times.rate(view.shared))
        slots[f"{arm}.tokens"] = wording.count(state.tokens, "token")
        slots[f"{arm}.state"] = _state(view, arm) if arm in view.racing else ""
    return slots


def _state(view: RaceView, arm: str) -> str:
    if view.arm(arm).ended:
        return wording.ending(view.arm(arm).ended)
    return {"running": "writing", "reading": "reading the prompt", "queued": "waiting", "loading": "waiting"}.get(
        view.phase, ""
    )


def _lead(view: RaceView) -> str:
    """Who is ahead, in tokens at equal decode time."""
    if view.phase == "empty":
        return _PROMISE
    if view.first_end is not None:
        if view.first_end[1][view.first_end[0]] == 1:
            return _ONE_TOKEN
        return f"{_at_the_end(view)}."
    if view.sparse.prompt is None:
        return view.message
    leader = view.leader
    if leader is None:
        return f"Equal decode time for {'all' if view.rival.method else 'both'}: the faster arm pulls ahead."
    tokens = {view.arm_name(name): arm.tokens for name, arm in view.racing.items()}
    if view.rival.method:
        return f"At equal decode time: {wording.standing(tokens)}."
    lead = max(tokens.values()) - min(tokens.values())
    name = view.arm_name(leader)
    is_ahead = "was" if view.over else "is"
    return f"{name[0].upper()}{name[1:]} {is_ahead} {wording.count(lead, 'token')} ahead at equal decode time."


def _at_the_end(view: RaceView) -> str:
    """How far all were when the first one ended."""
    assert view.first_end is not None, "only once an arm has ended"
    first, tokens = view.first_end
    others = [f"{view.arm_name(arm)} had written {tokens[arm]:,}" for arm in view.racing if arm != first]
    ended = wording.count(tokens[first], "token")
    return f"When {view.arm_name(first)} ended, at {ended}, {' and '.join(others)}"


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
