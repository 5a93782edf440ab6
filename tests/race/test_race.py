"""The race: its schedule under a fake clock, its text against transformers' own generate, its events and its result."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_tda
from tiny import PROMPT, tiny, tiny_tokenizer

from tda_demo.decode.choose import engine_for
from tda_demo.decode.text import TextStream
from tda_demo.methods import GRIFFIN, TDA, Method, Random, TokenPolicy
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.loading import LoadedModel
from tda_demo.race import (
    Ended,
    Event,
    Finished,
    Judging,
    Lane,
    Priced,
    PromptRead,
    RaceSettings,
    Stepped,
    race,
    run_lanes,
)
from tda_demo.race.recording import Recording
from tda_demo.race.result import FirstEnd, RaceResult, summary
from tda_demo.stats import metrics
from tda_demo.stats.clock import StepClock, shared_steps
from tda_demo.support.errors import UserError

ONLINE = plain_tda(cett=0.4, online=True)


class Clock:
    """Seconds that pass only when something is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeArm:
    """Takes as long per step as it is told to, and always says token 5."""

    clock: Clock
    seconds: list[float]
    weight_bytes: int = 1
    packing_ms: float = 0.0
    taken: list[int] = field(default_factory=list)

    def step(self, token: int) -> torch.Tensor:
        self.taken.append(token)
        self.clock.now += self.seconds[min(len(self.taken) - 1, len(self.seconds) - 1)]
        return torch.nn.functional.one_hot(torch.tensor(5), 97).float()

    def activations(self) -> list[torch.Tensor]:
        return []


def fake_lane(name: str, clock: Clock, seconds: list[float], limit: int) -> Lane:
    lane = Lane(
        name=name,  # type: ignore[arg-type]
        arm=FakeArm(clock, seconds),
        choose=lambda logits: int(logits.argmax()),
        stream=TextStream(tiny_tokenizer()),
        eos_ids=frozenset({2}),
        limit=limit,
        limit_reason="length",
        clock=clock,
    )
    list(lane.start(torch.nn.functional.one_hot(torch.tensor(7), 97).float()))
    return lane


def test_the_arm_with_the_least_decode_time_steps_next() -> None:
    clock = Clock()
    lanes = fake_lane("dense", clock, [0.3], 5), fake_lane("sparse", clock, [0.1], 9)
    events = run_lanes(lanes, threading.Event())
    order = "".join(event.arm[0] for event in events if isinstance(event, Stepped))
    assert order == "dsssdsssdssd"  # 0.3 | 0.1 0.2 0.3 | at 0.3 each dense goes first | ...


def test_three_arms_share_the_time_alike() -> None:
    clock = Clock()
    lanes = [
        fake_lane(name, clock, [seconds], limit)
        for name, seconds, limit in (("dense", 1 / 2, 3), ("rival", 1 / 4, 5), ("sparse", 1 / 8, 9))
    ]
    events = run_lanes(lanes, threading.Event())
    order = "".join(event.arm[0] for event in events if isinstance(event, Stepped))
    assert order == "drssrss" * 2  # all are level after half a second and at the end; where some are, the first first


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_decode_time_never_differs_by_more_than_a_step(dense: list[float], sparse: list[float]) -> None:
    clock = Clock()
    lanes = fake_lane("dense", clock, dense, 25), fake_lane("sparse", clock, sparse, 25)
    for event in run_lanes(lanes, threading.Event()):
        if isinstance(event, Ended):
            break
        assert abs(lanes[0].elapsed_ms - lanes[1].elapsed_ms) <= 1000 * max(*dense, *sparse) + 1e-6


def test_what_is_done_between_steps_is_not_timed() -> None:
    clock = Clock()

    def slow(_arm: object) -> np.ndarray:
        clock.now += 100
        return np.zeros(0, dtype=int)

    lanes = fake_lane("dense", clock, [0.2], 4), fake_lane("sparse", clock, [0.2], 4)
    lanes[1].count = slow
    for _ in run_lanes(lanes, threading.Event()):
        clock.now += 100  # a slow listener
    assert len(lanes[1].fired) == 3 and not lanes[0].fired
    assert all(lane.step_ms == pytest.approx([200.0] * 3) for lane in lanes)


@pytest.mark.parametrize("names", [("dense", "sparse"), ("dense", "rival", "sparse")])
def test_stop_ends_all_arms_within_one_step(names: tuple[str, ...]) -> None:
    clock, stop = Clock(), threading.Event()
    lanes = [fake_lane(name, clock, [0.1], 50) for name in names]
    stepped = 0
    for event in run_lanes(lanes, stop):
        if isinstance(event, Stepped):
            stepped += 1
            if stepped == 7:
                stop.set()
    assert stepped == 7
    assert {lane.ended for lane in lanes} == {"stopped"}


def first_end(lanes: Sequence[Lane], stop: threading.Event | None = None, after: int = 0) -> FirstEnd | None:
    """What ``run_lanes`` returns; ``stop`` is set once ``after`` steps were taken."""
    events, stepped = run_lanes(lanes, stop or threading.Event()), 0
    while True:
        try:
            stepped += isinstance(next(events), Stepped)
        except StopIteration as ended:
            return ended.value
        if stop is not None and stepped == after:
            stop.set()


def test_where_all_were_when_the_first_one_ended() -> None:
    clock = Clock()
    lanes = [
        fake_lane(name, clock, [seconds], limit)
        for name, seconds, limit in (("dense", 1 / 2, 9), ("sparse", 1 / 8, 9), ("rival", 1 / 4, 3))
    ]
    # The rival's second step ends it. At 0.25 s sparse, level with it, went first: 0.375 s are three of its steps.
    assert first_end(lanes) == FirstEnd("rival", {"dense": 2, "sparse": 4, "rival": 3})
    assert [len(lane.tokens) for lane in lanes] == [9, 9, 3]


@settings(deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.lists(st.floats(0.01, 1), min_size=1, max_size=20))
def test_at_the_first_end_no_arm_is_a_step_ahead_in_time(dense: list[float], sparse: list[float]) -> None:
    clock = Clock()
    lanes = fake_lane("dense", clock, dense, 12), fake_lane("sparse", clock, sparse, 12)
    first = first_end(lanes)
    assert first is not None and first.tokens[first.arm] == 12
    used = [sum(lane.times.counted[: first.tokens[lane.name] - 1]) for lane in lanes]
    last = [lane.times.counted[first.tokens[lane.name] - 2] for lane in lanes]
    assert abs(used[0] - used[1]) <= max(last) + 1e-6


def test_a_stopped_race_and_one_without_steps_have_no_first_end() -> None:
    clock = Clock()
    lanes = [fake_lane("dense", clock, [0.3], 20), fake_lane("sparse", clock, [0.1], 3)]
    assert first_end(lanes, threading.Event(), after=8) is None
    assert lanes[1].ended == "length" and lanes[0].ended == "stopped"
    assert first_end([fake_lane(name, clock, [0.1], 1) for name in ("dense", "sparse")]) is None


def run(lm: LoadedModel, method: Method = ONLINE, **settings: float) -> tuple[list[Event], RaceResult]:
    events = list(race(lm, method, PROMPT, RaceSettings(**settings)))  # type: ignore[arg-type]
    assert isinstance(events[-1], Finished)
    return events, events[-1].result


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_arm_is_transformers_own_greedy_generate(family: str) -> None:
    lm = tiny(family)
    _, result = run(lm, max_new_tokens=20)
    ids = torch.tensor([lm.prompt_ids(PROMPT)])
    expected = lm.model.generate(ids, max_new_tokens=20, do_sample=False, num_beams=1, pad_token_id=0)
    assert result.dense.text == lm.tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_setting_gives_twice_the_same_text(family: str) -> None:
    _, result = run(tiny(family), TDA(cett=0), max_new_tokens=16)
    assert result.dense.text == result.sparse.text
    assert result.byte_bound == 1 and set(result.sparsity) == {0}
    assert result.quality is not None
    assert (result.quality.agreement, result.quality.kl, result.quality.divergence) == (1, 0, None)
    assert result.quality.cett == [0, 0, 0]


def test_events_come_in_order_and_add_up(lm: LoadedModel) -> None:
    events, result = run(lm, max_new_tokens=16)
    first = events[0]
    assert isinstance(first, PromptRead)
    assert len(first.tokens) == result.prompt_tokens == first.fired.shape[0]
    assert first.active.sparsity() == result.sparsity
    assert [type(event) for event in events[-3:]] == [Judging, Priced, Finished]
    judged = [event for event in events if isinstance(event, Priced)]
    assert (
        len(judged) == 2 and result.quality is not None
    )  # eight positions as soon as they are there, the rest at last
    assert sum(sum(event.agrees) for event in judged) == round(result.quality.agreement * result.quality.positions)
    assert events.index(judged[0]) < len(events) - 3
    at = next(place for place, event in enumerate(events) if isinstance(event, Ended))
    written = [event.arm for event in events[:at] if isinstance(event, Stepped) and (event.ms or not event.index)]
    ended = events[at]
    assert isinstance(ended, Ended)
    assert result.first_end == FirstEnd(ended.arm, {arm: written.count(arm) for arm in ("dense", "sparse")})
    for name, arm in (("dense", result.dense), ("sparse", result.sparse)):
        steps = [event for event in events if isinstance(event, Stepped) and event.arm == name]
        assert "".join(step.text for step in steps) == arm.text
        assert [step.index for step in steps] == list(range(arm.tokens))
        assert [step.ms for step in steps[1:]] == arm.step_ms and steps[0].ms is None
        fired = [step.fired for step in steps[1:]]
        assert all((each is None) == (name == "dense") for each in fired)
    counts = np.array(first.active.counts())
    sparse_fired = [e.fired for e in events if isinstance(e, Stepped) and e.fired is not None]
    assert all((each <= counts).all() for each in sparse_fired)


def test_byte_bound_counts_every_weight_once(lm: LoadedModel) -> None:
    """By hand for the tiny llama (tied head): attention, MLP and norms of each layer, the head, one embedding row."""
    events, result = run(lm, max_new_tokens=2)
    d, kv, layers, vocabulary = 32, 16, 3, 97
    other = layers * (2 * d * d + 2 * d * kv + 2 * d) + d + vocabulary * d + d
    assert result.dense.weight_bytes == 4 * (other + layers * 3 * d * 70)
    assert isinstance(events[0], PromptRead)
    assert result.sparse.weight_bytes == 4 * (other + 3 * d * sum(events[0].active.counts()))


def test_sampling_is_repeatable_and_follows_the_seed(lm: LoadedModel) -> None:
    texts = [run(lm, TDA(cett=0), max_new_tokens=16, temperature=2.0, seed=seed)[1].dense.text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_context_limit_ends_the_race_with_its_reason() -> None:
    lm = tiny()
    lm.model.config.max_position_embeddings = 20
    events, result = run(lm, TDA(cett=0), max_new_tokens=100)
    reasons = {event.reason for event in events if isinstance(event, Ended)}
    assert reasons <= {"context", "eos"}
    assert result.prompt_tokens + result.dense.tokens <= 20


def test_end_token_ends_an_arm(lm: LoadedModel) -> None:
    lm.model.generation_config.eos_token_id = list(range(3, 97))
    events, result = run(lm, max_new_tokens=9)
    assert [event.reason for event in events if isinstance(event, Ended)] == ["eos", "eos"]
    assert (result.dense.tokens, result.speedup, result.quality, result.first_end) == (1, None, None, None)


def test_stopped_race_still_tells_what_it_measured(lm: LoadedModel) -> None:
    stop = threading.Event()
    events: list[Event] = []
    stepped = {"dense": 0, "sparse": 0}
    for event in race(lm, ONLINE, PROMPT, RaceSettings(max_new_tokens=60), stop):
        events.append(event)
        if isinstance(event, Stepped):
            stepped[event.arm] += 1
        if min(stepped.values()) == 6:
            stop.set()
    assert isinstance(events[-1], Finished) and not any(isinstance(event, Judging) for event in events)
    result = events[-1].result
    assert result.quality is None and result.speedup is not None and result.first_end is None


def test_two_races_at_once_do_not_disturb_each_other() -> None:
    lm = tiny()
    alone = {cett: run(lm, plain_tda(cett=cett, online=True), max_new_tokens=20)[1] for cett in (0.0, 0.5)}
    together: dict[float, RaceResult] = {}

    def worker(cett: float) -> None:
        together[cett] = run(lm, plain_tda(cett=cett, online=True), max_new_tokens=20)[1]

    threads = [threading.Thread(target=worker, args=(cett,)) for cett in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for cett, result in alone.items():
        assert (together[cett].dense.text, together[cett].sparse.text) == (result.dense.text, result.sparse.text)


@pytest.mark.parametrize("family", ["llama", "opt"])  # on the compiled step, and on compiled linears
def test_a_duel_is_both_single_races_at_once(family: str) -> None:
    """Active sets of equal size that are packed at the same time: neither may write into the other's memory."""
    lm, methods = tiny(family), (GRIFFIN(keep=0.5), Random(keep=0.5))
    alone = [run(lm, method, max_new_tokens=24)[1] for method in methods]
    for own, rival in ((0, 1), (1, 0), (0, 1)):  # again, when memory is used again
        events = list(race(lm, methods[own], PROMPT, RaceSettings(max_new_tokens=24), rival=methods[rival]))
        assert isinstance(events[0], PromptRead) and isinstance(events[-1], Finished)
        result = events[-1].result
        assert result.rival is not None and events[0].rival is not None and result.engine == alone[0].engine
        assert result.dense.text == alone[0].dense.text and events[0].rival.active is not None
        for found, single in ((result, alone[own]), (result.rival, alone[rival])):
            assert found.sparse.text == single.sparse.text and found.quality == single.quality
            assert (found.byte_bound, found.sparsity) == (single.byte_bound, single.sparsity)
            assert (found.method, found.settings) == (single.method, single.settings)
        arms = (result.rival.sparse, result.sparse, result.dense)
        rival_times, own_times, dense_times = (StepClock(arm.step_ms) for arm in arms)
        shared = shared_steps(rival_times, own_times, dense_times)
        speed = metrics.speedup(rival_times, own_times, shared)
        assert result.speedup_over_rival == speed
    assert alone[0].sparse.text != alone[1].sparse.text


def test_a_rival_s_events_add_up(lm: LoadedModel) -> None:
    events = list(race(lm, ONLINE, PROMPT, RaceSettings(max_new_tokens=12), rival=GRIFFIN(keep=0.5)))
    rival = next(event.result.rival for event in events if isinstance(event, Finished))
    steps = [event for event in events if isinstance(event, Stepped) and event.arm == "rival"]
    assert rival is not None and "".join(step.text for step in steps) == rival.sparse.text
    assert [step.ms for step in steps[1:]] == rival.sparse.step_ms
    assert all((step.fired <= 35).all() for step in steps[1:] if step.fired is not None)
    assert sum(isinstance(event, Ended) for event in events) == 3


def test_all_arms_of_a_duel_run_on_the_one_engine_that_can_run_them(lm: LoadedModel) -> None:
    class Uncompiled(TokenPolicy):
        def fire(self, block: FeedForward, x: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
            return activations != 0

    sets, rule = GRIFFIN(keep=0.5).bind(lm), Uncompiled()
    assert engine_for(lm, sets).name == "compiled CPU step" != engine_for(lm, rule).name
    assert engine_for(lm, sets, rule).name == engine_for(lm, rule, sets).name == engine_for(lm, rule).name


def test_the_json_of_a_duel_has_two_keys_more(lm: LoadedModel) -> None:
    _, plain = run(lm, max_new_tokens=12)
    *_, last = race(lm, ONLINE, PROMPT, RaceSettings(max_new_tokens=12), rival=GRIFFIN(keep=0.5))
    assert isinstance(last, Finished)
    told = json.loads(json.dumps(last.result.to_json(), allow_nan=False))
    assert [*told] == [*plain.to_json(), "rival", "speedup_over_rival"]
    assert told["rival"].keys() == {
        "method", "settings", "arm", "speedup", "byte_bound", "efficiency", "sparsity", "quality", "note"
    }  # fmt: skip
    assert (told["rival"]["method"], told["rival"]["settings"]) == ("griffin", GRIFFIN(keep=0.5).settings())
    assert told["rival"]["arm"].keys() == told["arms"]["sparse"].keys()
    assert told["rival"]["sparsity"]["mean"] == 0.5 and told["speedup_over_rival"]["n"] > 0
    said = summary(last.result)
    assert (
        "griffin (keep=0.5, first=0, rest=skip, prior=0.0, refresh=0), against dense:" in said
        and "tda over griffin: speedup" in said
    )


def test_the_summary_counts_tokens_from_one_and_says_what_was_left_out(lm: LoadedModel) -> None:
    _, result = run(lm, max_new_tokens=12)
    assert result.quality is not None
    parted = dataclasses.replace(result, quality=dataclasses.replace(result.quality, divergence=3))
    assert "texts part at token 4;" in summary(parted) and parted.to_json()["quality"]["divergence"] == 3
    for name, words in (
        ("tda", "of the MLP neurons (mean"),
        ("cats", "of the MLP neurons' up and down"),
        ("tt", "of the MLP neurons' down"),
        ("teal", "of the MLP weights"),
        ("a method of someone else", "of the MLP neurons (mean"),
    ):
        assert words in summary(dataclasses.replace(result, method=name))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": -3}, "max_new_tokens is -3"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RaceSettings(**settings)


def test_blank_and_overlong_prompts_are_refused_and_the_next_race_runs(lm: LoadedModel) -> None:
    with pytest.raises(UserError, match="empty"):
        list(race(lm, ONLINE, " \n\t "))
    with pytest.raises(UserError, match="200 tokens long"):
        list(race(lm, ONLINE, "w5 " * 200))
    run(lm, max_new_tokens=3)


def test_a_dense_step_in_fewer_bits_is_told_with_what_it_would_round(lm: LoadedModel) -> None:
    of_many_bits, of_four = (run(dataclasses.replace(lm, has_four_bits=four), max_new_tokens=4)[1] for four in (0, 1))
    assert of_many_bits.fewer_bits == of_four.fewer_bits and "q4" in of_four.fewer_bits
    rounding = "in q4 (which rounds these weights to four bits)"
    assert rounding in summary(of_many_bits) and rounding not in summary(of_four)
    assert "in q4" in summary(of_four)


def test_json_is_plain_and_has_what_is_documented(lm: LoadedModel) -> None:
    _, result = run(lm, max_new_tokens=12)
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told.keys() == {
        "model", "device", "precision", "engine", "method", "settings", "prompt_tokens", "arms", "speedup",
        "byte_bound", "efficiency", "sparsity", "quality", "environment", "note", "first_end", "fewer_bits",
        "rounded_in",
    }  # fmt: skip
    assert told["arms"].keys() == {"dense", "sparse"}
    assert {"text", "tokens", "step_ms", "prefill_ms", "tokens_per_second"} <= told["arms"]["dense"].keys()
    assert told["first_end"].keys() == {"arm", "tokens"}
    assert told["first_end"]["arm"] in told["first_end"]["tokens"].keys() == {"dense", "sparse"}
    assert told["speedup"].keys() == {"ratio", "median", "low", "high", "n", "capped"}
    assert told["sparsity"].keys() == {"mean", "per_layer"}
    assert {"agreement", "kl", "divergence"} <= told["quality"].keys()
    assert {"cpu", "threads", "torch"} <= told["environment"].keys()
    assert "tokens/s" in summary(result) and "nats/token" in summary(result)


def test_what_happens_between_steps_is_not_timed_and_its_events_come_through(lm: LoadedModel) -> None:
    clock = Clock()
    lanes = fake_lane("dense", clock, [0.2], 4), fake_lane("sparse", clock, [0.2], 4)

    def between() -> Iterator[Event]:
        clock.now += 100
        yield Priced("sparse", (True,), (0.0,))

    events = list(run_lanes(lanes, threading.Event(), between))
    assert sum(isinstance(event, Priced) for event in events) == 6
    assert all(lane.step_ms == pytest.approx([200.0] * 3) for lane in lanes)


def test_a_recording_is_the_race_again(lm: LoadedModel) -> None:
    events = list(race(lm, ONLINE, PROMPT, RaceSettings(max_new_tokens=12), rival=GRIFFIN(keep=0.5)))
    recording = Recording(PROMPT, ["a", "b"], 12, "2026-01-01", [70] * 3, 1.0, events)
    again = Recording.of(recording.text())
    assert json.dumps(again.result.to_json()) == json.dumps(recording.result.to_json())
    assert [type(event) for event in again.events] == [type(event) for event in events]
    steps, kept = ([e for e in each if isinstance(e, Stepped)] for each in (events, again.events))
    assert [(step.arm, step.text) for step in steps] == [(step.arm, step.text) for step in kept]
    assert recording.text() == again.text()
