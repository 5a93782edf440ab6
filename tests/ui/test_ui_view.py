"""From a run's events to what the page shows."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tda_demo.methods import GRIFFIN, TDA, TT, DejaVu, Method, Random
from tda_demo.methods.plan import ActiveSets
from tda_demo.methods.presets import MOST_KL
from tda_demo.race import Ended, Finished, Judging, Priced, PromptRead, Stepped
from tda_demo.race.result import ArmResult, MethodResult, RaceQuality, RaceResult
from tda_demo.stats.metrics import Speedup
from tda_demo.support.progress import Progress
from tda_demo.ui.job import TimedOut
from tda_demo.ui.race.frame import RaceFrame
from tda_demo.ui.race.remedy import remedy
from tda_demo.ui.race.runs import Ready, SettingFound
from tda_demo.ui.race.stage import facts_of, stage
from tda_demo.ui.race.view import RaceView
from tda_demo.ui.requests import Budget, RunRequest
from tda_demo.ui.worker import Closed, Failed, Loading, Waiting

LAYERS, D_FF = 2, 8
READY = Ready((D_FF,) * LAYERS, mlp_bytes=600)
REQUEST = RunRequest("p", GRIFFIN(keep=0.5), max_new_tokens=20)


def speed(ratio: float, low: float, high: float) -> Speedup:
    return Speedup(ratio, low, high, 30, 0, ratio)


def prompt_read() -> PromptRead:
    active = ActiveSets.from_indices((torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2])), (D_FF, D_FF))
    return PromptRead(("a", " b"), 100.0, 10.0, 5.0, active, np.zeros((2, LAYERS), dtype=np.int64), 1.25, (4, 2))


def steps(arm: Any, texts: list[str], ms: float) -> list[Stepped]:
    fired = None if arm == "dense" else np.ones(LAYERS, dtype=np.int64)
    first, *rest = texts
    later = [Stepped(arm, index, text, ms, 1000, fired) for index, text in enumerate(rest, start=1)]
    return [Stepped(arm, 0, first, None, None, None), *later]


def step_of(arm: Any, index: int, computed: list[int] | None, weight_bytes: int) -> Stepped:
    """A step that says what it read."""
    return Stepped(arm, index, "x", 10.0, weight_bytes, None if computed is None else np.array(computed))


def result(dense: str, sparse: str, divergence_at: int | None = None, **own: Any) -> RaceResult:
    arms = [ArmResult(text, 20, [10.0] * 19, 100.0, 100.0, 1000, "length") for text in (dense, sparse)]
    divergence = None if divergence_at is None else 3
    values: dict[str, Any] = {
        "model": "m", "device": "cpu", "precision": "int8", "engine": "e", "method": "griffin", "settings": {},
        "prompt_tokens": 2, "dense": arms[0], "sparse": arms[1], "speedup": speed(1.2, 1.1, 1.3),
        "byte_bound": 1.25, "efficiency": 0.96, "sparsity": [0.5, 0.75],
        "quality": RaceQuality(0.5, 0.25, 19, divergence, divergence_at, [0.1, 0.2]), "environment": {"cpu": "c"},
    }  # fmt: skip
    return RaceResult(**{**values, **own})


def after(*events: Any) -> RaceView:
    view = RaceView(REQUEST)
    for event in (READY, *events):
        view.apply(event)
    return view


def slots(view: RaceView) -> dict[str, str]:
    return stage(view)["slots"]


def test_a_whole_race_passes_through_its_phases() -> None:
    view, phases = RaceView(REQUEST), []
    events = [
        Waiting(1), Waiting(0), Loading(Progress("Loading", 1, 4, "B")), prompt_read(), *steps("dense", ["a", "b"], 10),
        *steps("sparse", ["a", "c"], 8), Ended("dense", "eos"), Ended("sparse", "length"), Judging(),
        Finished(result("ab", "ac", 1)), Closed(),
    ]  # fmt: skip
    for event in events:
        view.apply(event)
        phases.append(view.phase)
    assert list(dict.fromkeys(phases)) == ["queued", "reading", "loading", "running", "judging", "finished"]
    assert view.over


def test_a_waiting_visitor_is_told_their_place() -> None:
    assert "2nd in line" in after(Waiting(1)).message


def test_loading_shows_megabytes_and_a_bar() -> None:
    view = after(Loading(Progress("Downloading m", 42_000_000, 93_000_000, "B")))
    assert view.message == "Downloading m: 42 of 93 MB" and view.progress == pytest.approx(42 / 93)


def test_texts_grow_and_tokens_count() -> None:
    view = after(prompt_read(), *steps("dense", ["The", " sky"], 10), *steps("sparse", ["The", " sea", "."], 10))
    assert stage(view)["texts"]["dense"]["pieces"] == ["The", " sky"]
    assert (slots(view)["dense.tokens"], slots(view)["sparse.tokens"]) == ("2 tokens", "3 tokens")
    assert (
        len(view.sparse.fired) == len(view.sparse.pieces) - 1 == 2
    )  # the first token comes from the prompt's own logits


def test_text_held_back_to_the_end_is_no_token() -> None:
    view = after(prompt_read(), *steps("dense", ["a", ""], 10), Stepped("dense", 1, "é", None, None, None))
    assert view.dense.tokens == 2 and view.dense.text == "aé"


def test_numbers_carry_their_units() -> None:
    view = after(prompt_read(), *steps("dense", ["x"] * 31, 12), *steps("sparse", ["x"] * 31, 10))
    shown = slots(view)
    assert (shown["speedup"], shown["claim"], shown["bound"]) == ("1.20×", "faster", "1.25×")
    assert (shown["dense.rate"], shown["sparse.rate"]) == ("83.3", "100.0") and shown["efficiency"] == "96 %"
    assert shown["prompt"] == "115 ms" and shown["prompt_parts"] == "read 100 ms + choose 10 ms + pack 5 ms"
    assert shown["sparsity"] == "62.5 %" and stage(view)["standing"]["sparse"] == "faster"


def test_a_speedup_whose_interval_includes_one_has_no_efficiency() -> None:
    texts = ["x"] * 61
    noise = np.random.default_rng(0).uniform(9, 15, 61)
    uneven = [steps("sparse", texts, ms)[index] for index, ms in enumerate(noise)]
    view = after(prompt_read(), *steps("dense", texts, 12), *uneven)
    assert slots(view)["efficiency"] == "–" and stage(view)["standing"]["sparse"] == "even"


def test_no_speed_is_shown_before_it_means_anything() -> None:
    shown = slots(after(prompt_read(), *steps("dense", ["x"] * 13, 12), *steps("sparse", ["x"] * 14, 10)))
    assert (shown["speedup"], shown["claim"]) == ("", "measuring, n = 12")


def test_the_price_is_told_while_the_race_goes_on() -> None:
    view = after(prompt_read(), Priced("sparse", (True,) * 6 + (False,) * 2, (0.1,) * 8))
    shown = slots(view)
    assert (shown["agreement"], shown["price_label"]) == ("6 of 8", "unchanged so far")
    assert "KL 0.10" in shown["price_note"] and stage(view)["damaged"] == []
    assert stage(view)["heat"]["marks"] == "11111100"


def test_a_damaged_text_is_said_in_the_headline_and_a_setting_that_keeps_it_offered() -> None:
    request = RunRequest("p", TDA(cett=0.2, shape="uniform", prior=0.0, rest="skip"), max_new_tokens=20)
    view = RaceView(request)
    for event in (READY, prompt_read(), Priced("sparse", (True,) * 10 + (False,) * 20, (1.0,) * 30)):
        view.apply(event)
    value = stage(view)
    assert (value["slots"]["agreement"], value["slots"]["price_label"]) == ("20 of 30", "differ: damaged")
    assert value["damaged"] == ["sparse"]
    assert value["remedy"]["set"]["tda.rest"] == "4bit" and value["remedy"]["label"] == "keep it: TDA default"
    kept = after(prompt_read(), Priced("sparse", (True,) * 30, (0.0,) * 30))
    assert stage(kept)["remedy"] is None


@pytest.mark.parametrize(
    ("method", "moves"),
    [
        (GRIFFIN(keep=0.5), {"griffin.keep": 0.955}),  # the dial alone, to the nearest value of the shipped curve
        (TDA(cett=0.2, rest="skip", scale=(2.0,) * 30), {"tda.cett": 0.7, "tda.rest": "4bit", "tda.scale": [1.0] * 30}),
        (Random(keep=0.5), {"random.keep": 0.9775}),  # a curve whose quality is known at presets alone
        (DejaVu(), {"dejavu.keep": 0.91}),
    ],
)
def test_the_remedy_is_the_nearest_setting_that_is_expected_to_keep_the_text(method: Method, moves: Any) -> None:
    found = remedy(method)
    assert found is not None and found["set"].items() >= moves.items()
    assert float(found["why"].removeprefix("expected KL ").split()[0]) <= MOST_KL


def test_there_is_no_remedy_where_no_setting_is_known_to_keep_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tda_demo.ui.race.remedy.presets_of", lambda _kind: [])
    monkeypatch.setattr("tda_demo.ui.race.remedy.expectations", lambda: {"methods": {}})
    assert remedy(Random(keep=0.5)) is None


def test_who_leads_is_told_at_equal_time() -> None:
    view = after(prompt_read(), *steps("dense", ["x"] * 5, 12), *steps("sparse", ["x"] * 8, 10))
    assert slots(view)["verdict"] == "GRIFFIN is 3 tokens ahead at equal decode time."
    assert stage(view)["leader"] == "sparse" and stage(after(prompt_read()))["leader"] is None


def test_a_stopped_race_is_told_in_the_past() -> None:
    view = after(prompt_read(), *steps("dense", ["x"] * 5, 12), *steps("sparse", ["x"] * 8, 10))
    view.phase = "stopped"
    assert slots(view)["verdict"] == "GRIFFIN was 3 tokens ahead at equal decode time."


def test_one_token_is_no_race() -> None:
    view = after(prompt_read(), *steps("dense", ["x"], 12), Ended("dense", "length"))
    assert slots(view)["verdict"].startswith("One token")


def test_a_race_stopped_before_a_step_is_not_said_to_be_over() -> None:
    one = ArmResult("Once", 1, [], 100.0, None, 1000, "stopped")
    stopped = dataclasses.replace(result("Once", "Once"), dense=one, sparse=one, speedup=None, quality=None)
    view = after(prompt_read(), Finished(stopped))
    assert slots(view)["verdict"].startswith("Stopped before a step was taken")


def test_the_place_of_the_slower_arm_is_marked_when_the_faster_ends() -> None:
    view = after(
        prompt_read(), *steps("dense", ["x"] * 15, 12), *steps("sparse", ["x"] * 20, 10), Ended("sparse", "length")
    )
    for event in (*steps("dense", ["x"] * 20, 12)[15:], Ended("dense", "length")):
        view.apply(event)
    assert stage(view)["track"] == {
        "dense": {"share": 1.0, "mark": 0.75},
        "sparse": {"share": 1.0, "mark": None},
        "rival": {"share": 0.0, "mark": None},
    }
    assert slots(view)["verdict"] == "When GRIFFIN ended, at 20 tokens, dense had written 15."


def test_the_parting_is_counted_as_a_browser_counts() -> None:
    dense, sparse = "😀😀 yes", "😀😀 no"
    view = after(prompt_read(), *steps("dense", [dense], 1), *steps("sparse", [sparse], 1))
    view.apply(Finished(result(dense, sparse, divergence_at=3)))
    assert [stage(view)["texts"][arm]["part"] for arm in ("dense", "sparse")] == [5, 5]
    assert slots(view)["parting"] == "token 4"


def test_equal_texts_never_part() -> None:
    view = after(prompt_read(), Finished(result("a", "a")))
    assert slots(view)["parting"] == "never" and stage(view)["texts"]["dense"]["part"] is None


def test_quality_waits_for_the_judge() -> None:
    assert slots(after(prompt_read()))["kl"] == "–" and slots(after(prompt_read()))["agreement"] == ""
    shown = slots(after(prompt_read(), Finished(result("a", "a"))))
    assert (shown["kl"], shown["agreement"]) == ("0.250", "10 of 19")


def test_a_stopped_race_has_no_quality() -> None:
    view = after(
        prompt_read(), Ended("dense", "stopped"), Ended("sparse", "stopped"), Finished(result("a", "b", quality=None))
    )
    assert (view.phase, view.message) == ("stopped", "Stopped.")
    assert slots(view)["parting"] == "–" and slots(view)["agreement"] == ""
    assert slots(view)["dense.state"] == "stopped"


def test_a_race_over_time_says_so() -> None:
    ended = [Ended("dense", "stopped"), Ended("sparse", "stopped"), Finished(result("a", "b", quality=None))]
    view = after(prompt_read(), TimedOut(120.0), *ended)
    assert view.phase == "stopped" and "120 s" in view.message


def test_failure_is_a_sentence_and_the_end() -> None:
    view = after(Failed("Do this."), Closed())
    assert (view.phase, view.message, view.over) == ("failed", "Do this.", True)


def test_a_run_stopped_in_the_line_is_over() -> None:
    assert after(Waiting(2), Closed()).phase == "stopped"


def test_the_empty_page_says_what_will_be_seen() -> None:
    empty = stage(RaceView())
    assert empty["phase"] == "empty" and "Press Enter" in empty["slots"]["verdict"]


def test_the_method_has_its_own_name_everywhere() -> None:
    shown = slots(after(prompt_read()))
    assert (shown["lane"], shown["chosen"]) == ("GRIFFIN", "one set, from the prompt; the rest skipped")
    assert slots(RaceView())["lane"] == "Sparse"


def in_words(view: RaceView) -> str:
    return dict(facts_of(view)).get("in words", "")


def test_a_budget_is_told_when_it_is_found_and_when_it_is_spent() -> None:
    found = SettingFound(GRIFFIN(keep=0.86), Budget("kl", 0.3), 0.29, 0.86)
    told = in_words(after(found))
    assert "at most 0.30" in told and "keep = 0.86" in told and "your prompt" not in told
    assert "on your prompt 0.25" in in_words(after(found, prompt_read(), Finished(result("a", "a"))))
    bytes_found = SettingFound(GRIFFIN(keep=0.7), Budget("mlp_share", 0.7), 0.5, 0.7)
    # A byte bound of 1.25 saves a fifth of 1,000 bytes, a third of the MLP's 600.
    assert "on your prompt 67 %" in in_words(after(bytes_found, prompt_read(), Finished(result("a", "a"))))
    assert RaceFrame(after(found), {}).outputs()["griffin.keep"] == 0.86


def test_sets_chosen_anew_are_counted_as_they_come() -> None:
    read = dataclasses.replace(prompt_read(), active=None, kept=None, byte_bound=None)
    dense = [step_of("dense", index, None, 1000) for index in range(3)]
    sparse = [step_of("sparse", index, [2, 4 * (index == 2)], 400 + 200 * index) for index in range(1, 3)]
    view = after(read)
    assert slots(view)["bound"] == slots(view)["sparsity"] == "–"
    frame = RaceFrame(view, {})
    first = frame.outputs()
    assert "no one set" in first["neurons"]["ghost"] and "GRIFFIN" in first["neurons"]["ghost"]
    for event in (*dense, *sparse):
        view.apply(event)
    assert slots(view)["bound"] == "1.43×" and slots(view)["sparsity"] == "75.0 %"  # of 700 bytes, of 2 and 2 neurons
    assert frame.outputs()["layers"]["hover"]["kept"] == [2, 2]


def test_two_arms_that_did_the_same_work_are_even_whatever_was_measured() -> None:
    equal = result("a", "a", sparsity=[0.0, 0.0], speedup=speed(0.95, 0.91, 0.99), byte_bound=1.0)
    view = after(prompt_read(), Finished(equal))
    assert stage(view)["standing"]["sparse"] == "even"
    assert (slots(view)["speedup"], slots(view)["claim"]) == ("0.95×", "at equal work")
    assert slots(view)["efficiency"] == "–"


DUEL = RunRequest("p", GRIFFIN(keep=0.5), max_new_tokens=20, rival=TT(cett=0.25))


def duel(*events: Any) -> RaceView:
    """Both have read the prompt: the rival, a token-level method, knows its bytes as it goes."""
    view = RaceView(DUEL)
    rival = dataclasses.replace(prompt_read(), packing_ms=0.0, active=None, kept=None, byte_bound=None)
    for event in (READY, dataclasses.replace(prompt_read(), rival=rival), *events):
        view.apply(event)
    return view


def duel_result(over_rival: Speedup, **own: Any) -> RaceResult:
    values: dict[str, Any] = {
        "method": "tt", "settings": {"cett": 0.25}, "sparse": result("", "ac").sparse, "efficiency": 0.9,
        "speedup": speed(0.9, 0.8, 0.95), "byte_bound": 1.0, "sparsity": [0.75, 0.75],
        "quality": RaceQuality(0.25, 0.5, 19, 1, 1, [0.1, 0.2]), "note": "trained for 3 s on 20 tokens",
    }  # fmt: skip
    rival = MethodResult(**{**values, **own})
    return result("ab", "abc", rival=rival, speedup_over_rival=over_rival)


def test_a_rival_has_its_own_figures_and_its_own_pane() -> None:
    dense, own = steps("dense", ["x"] * 31, 12), steps("sparse", ["x"] * 31, 10)
    rival = [
        Stepped("rival", 0, "r", None, None, None),
        *(step_of("rival", index, [2, 4], 800) for index in range(1, 31)),
    ]
    view = duel(*dense, *own, *rival)
    shown = slots(view)
    assert (shown["lane"], shown["rival.lane"], shown["rival.chosen"]) == (
        "GRIFFIN",
        "TT",
        "a new set at every token",
    )
    assert (shown["speedup"], shown["rival.speedup"]) == ("1.20×", "1.20×")
    assert (shown["rival.bound"], shown["rival.sparsity"], shown["rival.prompt"]) == ("1.25×", "62.5 %", "110 ms")
    assert stage(view)["texts"]["rival"]["pieces"] == ["r"] + 30 * ["x"] and shown["rival.tokens"] == "31 tokens"
    assert len(view.sparse.fired) == len(view.rival.fired) == 30 and view.sparse.fired[0].tolist() == [1, 1]


def test_two_methods_are_compared_at_what_each_read() -> None:
    view = duel(Finished(duel_result(speed(1.3, 1.2, 1.4))))
    assert in_words(view).startswith(
        "GRIFFIN read 80.0 % of a dense step's weight bytes, ran at 1.20× its speed, KL 0.250 nats/token. "
        "TT read 100.0 % of a dense step's weight bytes, ran at 0.90× its speed, slower, KL 0.500 nats/token."
    )
    assert in_words(view).endswith("TT: trained for 3 s on 20 tokens.")
    assert "GRIFFIN was the faster of the two: 1.30× the speed of TT" in slots(view)["verdict"]
    assert "slower of the two: 0.80×" in slots(duel(Finished(duel_result(speed(0.8, 0.7, 0.9)))))["verdict"]
    assert "shows no difference" in slots(duel(Finished(duel_result(speed(1.1, 0.95, 1.2)))))["verdict"]


def test_each_text_parts_from_dense_in_its_own_place() -> None:
    view = duel(*steps("dense", ["ab"], 1), *steps("sparse", ["abc"], 1), *steps("rival", ["ac"], 1))
    view.apply(Finished(duel_result(speed(1.3, 1.2, 1.4))))
    parts = {arm: each["part"] for arm, each in stage(view)["texts"].items()}
    assert parts == {"dense": None, "sparse": None, "rival": 1}
    assert (slots(view)["parting"], slots(view)["rival.parting"]) == ("never", "token 2")


def test_three_arms_are_told_in_their_order() -> None:
    view = duel(*steps("dense", ["x"] * 5, 12), *steps("sparse", ["x"] * 6, 10), *steps("rival", ["x"] * 9, 7))
    assert slots(view)["verdict"] == "At equal decode time: TT 9 tokens, GRIFFIN 6 and dense 5."
    view.apply(Ended("rival", "eos"))
    view.apply(steps("sparse", ["x"] * 7, 10)[-1])
    assert slots(view)["verdict"] == "When TT ended, at 9 tokens, dense had written 5 and GRIFFIN had written 6."
    assert stage(view)["leader"] == "rival"
    marks = {arm: bar["mark"] for arm, bar in stage(view)["track"].items()}
    assert marks == {"dense": 0.25, "sparse": 0.3, "rival": None}


def test_one_budget_sets_both_dials() -> None:
    budget = Budget("mlp_share", 0.7)
    view = duel(SettingFound(GRIFFIN(keep=0.7), budget, 0.5, 0.7), SettingFound(TT(cett=0.1), budget, 0.3, 0.69))
    told = in_words(view)
    assert "GRIFFIN: Asked for at most 70 %" in told and "TT: Asked for at most 70 %" in told and "cett = 0.1." in told
    outputs = RaceFrame(view, {}).outputs()
    assert (outputs["griffin.keep"], outputs["tt.cett"]) == (0.7, 0.1)


def test_without_a_rival_nothing_is_said_of_one() -> None:
    shown = slots(after(prompt_read(), Finished(result("a", "a"))))
    assert shown["rival.state"] == "" and shown["rival.lane"] == "Rival"


def drawn(frame: RaceFrame) -> set[str]:
    return set(frame.outputs())


def test_only_what_changed_is_sent() -> None:
    view = RaceView(REQUEST)
    frame = RaceFrame(view, {"tda.scale": 0, "other.scale": LAYERS})
    view.apply(Waiting(1))
    assert drawn(frame) == {"notice"}  # the last race stays until this one begins
    assert drawn(frame) == set()
    view.apply(READY)
    assert frame.outputs() == {"tda.scale": [1.0] * LAYERS}  # the other has its sliders already
    view.apply(prompt_read())
    assert drawn(frame) == {"notice", "stage", "layers", "neurons"}
    view.apply(steps("dense", ["a"], 1)[0])
    assert drawn(frame) == {"stage"}
    assert drawn(frame) == set()


def test_a_failure_leaves_the_last_race_to_be_seen() -> None:
    view = RaceView(REQUEST)
    view.apply(Failed("No."))
    assert drawn(RaceFrame(view, {})) == {"notice"}


def test_realised_cett_and_the_machine_come_at_the_end() -> None:
    view = after(prompt_read())
    frame = RaceFrame(view, {})
    frame.outputs()
    view.apply(Finished(result("a", "a")))
    last = frame.outputs()
    assert last["layers"]["hover"]["cett"] == [0.1, 0.2]
    assert ["engine", "e"] in last["machine"] and ["CPU", "c"] in last["machine"]
