"""Numbers as the page says them, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..methods.base import Method, SequenceMethod
from ..stats.metrics import ALLOWED, LEAST_SHOWN, Speedup, is_beyond, is_equal_work
from ..support.progress import Progress

NONE = "–"
_SUFFIXES = {1: "st", 2: "nd", 3: "rd"}
_ENDINGS = {
    "eos": "ended by itself",
    "length": "token limit reached",
    "context": "context is full",
    "stopped": "stopped",
}


def times(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}×"


def percent(share: float | None, digits: int = 0) -> str:
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def duration(ms: float | None) -> str:
    if ms is None:
        return NONE
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"


def rough_duration(seconds: float) -> str:
    """About how long, in steps a reader does not see jump."""
    if seconds < 60:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    return f"about {round(seconds / 60)} min"


def time_left(seconds: float) -> str:
    if seconds < 100:
        return f"about {max(1, round(seconds))} s left"
    return f"about {round(seconds / 60)} min left"


def rate(tokens_per_second: float | None) -> str:
    return NONE if tokens_per_second is None else f"{tokens_per_second:.1f}"


def count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{_SUFFIXES.get(number % 10, 'th')}"


def ending(reason: str) -> str:
    return _ENDINGS.get(reason, reason)


def waiting(place: int, reason: str) -> str:
    """For a run with ``place`` others before it, one of them running; ``reason`` says why it waits."""
    return f"You are {ordinal(place + 1)} in line: {reason}."


def share(progress: Progress) -> float | None:
    """0..1, None where the total is not known."""
    return progress.done / progress.total if progress.total else None


def progress_text(progress: Progress) -> str:
    """``Downloading SmolLM2-135M-Instruct: 42 of 93 MB``."""
    if not progress.total:
        return f"{progress.stage}…"
    if progress.unit == "B":
        return f"{progress.stage}: {progress.done / 1e6:.0f} of {progress.total / 1e6:.0f} MB"
    return f"{progress.stage}: {progress.done:,} of {progress.total:,} {progress.unit}"


def claim(speedup: Speedup | None, over: bool, *, equal: bool = False) -> tuple[str, str]:
    """A speedup as a headline: the number, empty while it is not sure enough to be one, and what it means.

    Of arms that do ``equal`` work it means nothing.
    """
    if speedup is None or not speedup.settled:
        if not over:
            return "", f"measuring, n = {0 if speedup is None else speedup.n}"
        if speedup is None:
            return "", "too few steps to tell, n = 0"
        if speedup.doubt:
            return "", speedup.doubt
        than = "at equal work" if equal else "faster" if speedup.winner > 0 else "slower than dense"
        return "", f"{than}, {' to '.join(_ends(speedup))}×"
    if equal:
        return times(speedup.ratio), "at equal work"
    if speedup.undecided:
        return times(speedup.ratio), "no difference"
    return times(speedup.ratio), "faster" if speedup.ratio > 1 else "slower than dense"


def interval(speedup: Speedup) -> str:
    """``95 % interval 1.12–1.16, n = 112``, and how many steps were capped."""
    capped = f", {count(speedup.capped, 'step')} capped" if speedup.capped else ""
    return f"95 % interval {'–'.join(_ends(speedup))}, n = {speedup.n}{capped}"


def _ends(speedup: Speedup) -> tuple[str, str]:
    """The interval's, with so many digits that they lie on the side of 1 they do lie on, which is the verdict."""
    ends = (speedup.low, speedup.high)
    if speedup.undecided:
        return f"{ends[0]:.2f}", f"{ends[1]:.2f}"
    digits = [next((few for few in (2, 3) if round(end, few) != 1), 4) for end in ends]
    return f"{ends[0]:.{digits[0]}f}", f"{ends[1]:.{digits[1]}f}"


def sureness(speedup: Speedup | None, bound: float | None, over: bool, *, equal: bool = False) -> str:
    """What stands under the headline: how sure it is, and what the bytes allow.

    More than they allow was not gained by reading less: something else took time from the dense arm's steps.
    """
    limit = "" if bound is None else f"limit {times(bound)}"
    settled = speedup is not None and speedup.settled
    if not equal and (over or settled) and is_beyond(speedup, bound):
        limit = f"over the {limit}"
    if speedup is None or not settled:
        return limit
    capped = f", {speedup.capped} capped" if speedup.capped else ""
    parts = [f"{'–'.join(_ends(speedup))} (95 %)", limit, f"n = {speedup.n}{capped}"]
    return " · ".join(filter(None, parts))


def machine(environment: Mapping[str, Any]) -> list[list[str]]:
    """Names and values for a reader, of what ``environment.describe`` and a race know."""
    labels = {
        "model": "model",
        "gpu": "GPU",
        "cpu": "CPU",
        "threads": "threads",
        "ram_gb": "memory",
        "precision": "weights in",
        "engine": "engine",
        "torch": "torch",
        "transformers": "transformers",
        "python": "Python",
    }
    units = {"ram_gb": " GB"}
    return [[labels[key], f"{environment[key]}{units.get(key, '')}"] for key in labels if key in environment]


def chosen(method: Method | None) -> str:
    """When ``method`` chooses what it computes, and what becomes of the rest."""
    if not isinstance(method, SequenceMethod):
        return "a new set at every token" + ("; the rest from a 4-bit copy" if has_rest(method) else "")
    when = f"after {count(method.first, 'dense token')}" if method.first else "from the prompt"
    every = getattr(method, "refresh", 0)
    sets = f"one set, {when}" if not every else f"a set {when}, a new one every {count(every, 'token')}"
    return f"{sets}; the rest {left_out(method)}"


def has_rest(method: Method | None) -> bool:
    """Whether the neurons that ``method`` leaves out contribute what a 4-bit copy says."""
    return method is not None and method.has_rest


def left_out(method: Method | None) -> str:
    """What happens to the neurons that ``method`` does not compute exactly."""
    return "from a 4-bit copy" if has_rest(method) else "skipped"


def _above(efficiency: float) -> str:
    """Why a speedup may be more than the bytes allow; nothing of one that is not."""
    if efficiency <= 1:
        return ""
    if efficiency > ALLOWED:
        return (
            "; the rest is no gain: other work on this machine slowed the dense arm, its kernels are slower, or its "
            "weights fit a cache"
        )
    return "; the little above that is chance"


def verdict(
    speedup: Speedup | None,
    byte_bound: float | None,
    sparsity: float,
    dense_rate: float | None,
    name: str,
    leaves_out: str,
    *,
    has_rest: bool = False,
) -> str:
    """What the race showed, and where the method ``name`` did not win, why not, from the race's own numbers.

    ``sparsity`` is the share 0..1 of what ``leaves_out`` says, "of the MLP neurons"; ``dense_rate`` in tokens/s.
    """
    if speedup is None or byte_bound is None or dense_rate is None or speedup.n < LEAST_SHOWN:
        return "Too few steps to compare the two speeds."
    if speedup.doubt:
        return f"The step times vary too much here to compare the two speeds ({interval(speedup)})."
    if is_equal_work(sparsity, byte_bound):
        return (
            f"Nothing was left out, so both arms did the same work: {times(speedup.ratio)} "
            "is how far two equal arms differ on this machine."
        )
    if not speedup.settled:
        than = "faster" if speedup.winner > 0 else "slower"
        above = _above(speedup.low / byte_bound) if speedup.winner > 0 else ""
        allowed = f"; the bytes it reads allow at most {times(byte_bound)}{above}" if above else ""
        return (
            f"{name} was {than} than dense; by how much, step times vary too much here to say "
            f"({interval(speedup)}){allowed}."
        )
    skipped = f"{percent(sparsity, 1)} {leaves_out}"
    skips, skipping = ("reads a 4-bit copy of", "reading a 4-bit copy of") if has_rest else ("skips", "skipping")
    if speedup.low > 1:
        above = _above(speedup.ratio / byte_bound)
        return (
            f"{times(speedup.ratio)}: {name} was faster, {skipping} {skipped}; "
            f"the bytes it saves allow at most {times(byte_bound)}{above}."
        )
    if speedup.high >= 1:
        return (
            f"{times(speedup.ratio)}: the interval includes 1, so this race shows no difference from dense. {name} "
            f"{skips} {skipped}; the bytes it saves allow at most {times(byte_bound)}."
        )
    dense = 1000 / dense_rate
    slower = (
        f"{times(speedup.ratio)}: slower than dense. {skipping.capitalize()} {skipped} leaves "
        f"{percent(1 / byte_bound)} of the weight bytes to read, which at best takes a step from {dense:.1f} ms to "
        f"{dense / byte_bound:.1f} ms; it took {dense / speedup.ratio:.1f} ms."
    )
    if speedup.ratio >= byte_bound:
        return slower
    return (
        f"{slower} The rest may be work that sparsity does not remove, such as attention, norms and launching each "
        "operation, or what the method adds: choosing what to read, and reading what lies scattered."
    )


def price_label(damaged: bool, so_far: bool) -> str:
    """After the number of next tokens that are dense's, or where the text is damaged, of those that are not."""
    return "differ: damaged" if damaged else f"unchanged{' so far' if so_far else ''}"


def price_note(kl: float, parting: str, *, brief: bool) -> str:
    """What stands under the price; ``parting`` is where the texts part, as far as that is known.

    ``brief`` where two methods share the line.
    """
    on = "" if brief else " on dense's text"
    return f"KL {kl:.2f} nats/token{on}" + (f" · texts part: {parting}" if parting != NONE else "")


def price(kl: float, same: int, positions: int) -> str:
    """What a method's choices cost on the dense text: ``kl`` in nats per token, ``same`` of ``positions`` unchanged."""
    return f"Its price: {positions - same:,} of {positions:,} next tokens are not dense's; KL {kl:.2f} nats/token."


def standing(tokens: Mapping[str, int]) -> str:
    """``GRIFFIN 31 tokens, Sketch 28 and dense 25``: arms in the order of their tokens."""
    (first, most), *others, (last, least) = sorted(tokens.items(), key=lambda arm: -arm[1])
    between = "".join(f", {name} {number:,}" for name, number in others)
    return f"{first} {count(most, 'token')}{between} and {last} {least:,}"


def method_summary(name: str, byte_bound: float | None, speedup: Speedup | None, kl: float | None) -> str:
    """A method at the bytes it read, in one sentence."""
    read = "" if byte_bound is None else f" read {percent(1 / byte_bound, 1)} of a dense step's weight bytes,"
    speed = ""
    if speedup is not None and speedup.settled:
        slower = ", slower" if speedup.high < 1 else ""
        speed = f" ran at {times(speedup.ratio)} its speed{slower},"
    return f"{name}{read}{speed} KL {NONE if kl is None else f'{kl:.3f} nats/token'}."


def duel(name: str, rival: str, over_rival: Speedup | None, bound: float | None) -> str:
    """Which of two methods was faster, by how much of the other's speed the first one ran at.

    ``bound`` is the rival's weight bytes over the method's, None where they are not known.
    """
    if over_rival is None or over_rival.doubt:
        return f"Too few steps, or too uneven ones, to compare the speeds of {name} and {rival}."
    ratio = f"{times(over_rival.ratio)} the speed of {rival} ({interval(over_rival)})"
    if over_rival.low > 1:
        return f"{name} was the faster of the two: {ratio}{_beyond(over_rival.ratio, bound)}."
    if over_rival.high < 1:
        return f"{name} was the slower of the two: {ratio}{_beyond(1 / over_rival.ratio, bound and 1 / bound)}."
    return f"{name} ran at {ratio}: the interval includes 1, so this race shows no difference in speed."


def _beyond(ratio: float, bound: float | None) -> str:
    """Of a method that was ``ratio`` times as fast as another: whether that is more than the bytes of both explain."""
    if bound is None or ratio <= ALLOWED * max(bound, 1):
        return ""
    return f", where their bytes explain {times(max(bound, 1))}"


def kl_budget(asked: float, setting: str, value: float, expected: float, got: float | None) -> str:
    """A KL budget in nats per token: what it set, what that costs on the calibration passages, and on this prompt."""
    on_prompt = "" if got is None else f", on your prompt {got:.2f}"
    return (
        f"Asked for a KL of at most {asked:.2f} nats/token: set {setting} = {value:.3g}. "
        f"KL {expected:.2f} on the calibration passages{on_prompt}."
    )


def mlp_budget(asked: float, setting: str, value: float, expected: float, got: float | None) -> str:
    """A budget of MLP weight bytes, all shares 0..1: the same sentence as ``kl_budget``'s."""
    on_prompt = "" if got is None else f", on your prompt {percent(got)}"
    return (
        f"Asked for at most {percent(asked)} of the MLP weight bytes: set {setting} = {value:.3g}. "
        f"It reads {percent(expected)} on the calibration passages{on_prompt}."
    )
