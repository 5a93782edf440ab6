"""Presets: the rule on rows that are drawn, what is scored for it, and the file that ships."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tda_demo.decode.choose import step_bytes
from tda_demo.evaluate import presets as rule
from tda_demo.evaluate.budget import PLACES
from tda_demo.evaluate.presets import candidates, choose, find_presets, has_paper, paper, score_all
from tda_demo.methods import GRIFFIN, METHODS, TDA, Magnitude, Method, Random, Sketch
from tda_demo.methods import presets as shipping
from tda_demo.methods.presets import FILE, MOST_KL, Preset, presets_of, shipped
from tda_demo.methods.settings import parse
from tda_demo.model.loading import LoadedModel

EXACT = Preset("", {}, 0.0, 1.0, 1.0, 1.0)
ROWS = st.builds(
    Preset,
    name=st.just(""),
    settings=st.just({}),
    kl=st.floats(0, 3),
    agreement=st.just(0.5),
    mlp_share=st.just(0.5),
    byte_bound=st.floats(0.5, 4),
    speedup=st.none() | st.floats(0.3, 4),
)


@pytest.mark.parametrize("kind", [TDA, GRIFFIN, Sketch, Random], ids=lambda kind: kind.name)
@given(st.lists(ROWS, min_size=1, max_size=30))
def test_what_the_rule_promises(kind: type[Method], drawn: list[Preset]) -> None:
    rows = [EXACT, *(dataclasses.replace(row, settings={"place": at}) for at, row in enumerate(drawn))]
    found = choose(kind, rows)
    names = [preset.name for preset in found]
    by_name = dict(zip(names, found, strict=True))
    assert len(by_name) == len(found) and set(names) <= {"exact", "default", "aggressive", "paper"}
    assert names[:2] == ["exact", "default"] and by_name["exact"] == dataclasses.replace(EXACT, name="exact")
    assert all(dataclasses.replace(preset, name="") in rows for preset in found)
    assert ("paper" in names) == has_paper(kind)
    own = rows[1:-1] if has_paper(kind) else rows[1:]
    if has_paper(kind):
        assert names[-1] == "paper" and by_name["paper"].settings == rows[-1].settings
    default = by_name["default"]
    assert default.kl <= MOST_KL
    allowed = [row for row in own if row.kl <= MOST_KL]
    if default.settings:
        assert all((row.speedup or 0) <= (default.speedup or 0) for row in allowed)
        equal = [row for row in allowed if (row.speedup or 0) == (default.speedup or 0)]
        assert all(row.byte_bound <= default.byte_bound for row in equal)
        assert all(row.kl >= default.kl for row in equal if row.byte_bound == default.byte_bound)
        assert default.speedup or default.byte_bound >= 1
    else:
        assert not [row for row in allowed if row.speedup or row.byte_bound > 1]  # none reads less than exact
    faster = [
        row for row in own if row.kl >= 2 * default.kl and row.kl >= MOST_KL and row.byte_bound > default.byte_bound
    ]
    assert ("aggressive" in names) == bool(faster)
    if faster:
        aggressive = by_name["aggressive"]
        assert aggressive.kl >= 2 * default.kl and aggressive.byte_bound > default.byte_bound
        assert all(row.kl >= aggressive.kl for row in faster)
    assert choose(kind, rows) == found  # nothing but the rows decides


@pytest.mark.parametrize("name", METHODS)
def test_candidates_begin_exact_end_with_the_papers_and_can_be_written(name: str) -> None:
    kind: Any = METHODS[name]
    methods = candidates(kind)
    assert getattr(methods[0], kind.dial.setting) == kind.dial.dense
    assert all(type(method) is kind for method in methods) and len(set(map(str, methods))) == len(methods)
    own = methods[1:-1] if has_paper(kind) else methods[1:]
    assert len({str(method) for method in own}) >= len(PLACES) - 1
    assert methods[-1] == paper(kind) if has_paper(kind) else kind.is_control or name == "sketch"
    for method in methods:
        preset = rule._row(method, _Totals())
        assert preset.of(kind) == method
        again = Preset(**json.loads(json.dumps(dataclasses.asdict(preset))))
        assert again.of(kind) == method  # also out of the file
        assignments = [
            f"{key}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for key, value in preset.settings.items()
        ]
        assert kind(**parse(kind, assignments)) == method


class _Totals:
    kl, agreement, mlp_share, byte_bound = 0.1, 0.9, 0.5, 1.5


def test_the_papers_tda_reads_the_prompt_alone() -> None:
    assert paper(TDA) == TDA(cett=0.2, shape="uniform", prior=0, first=0, refresh=0, rest="skip")
    assert [kind.name for kind in METHODS.values() if not has_paper(kind)] == ["sketch", "random", "magnitude", "prior"]
    grid = candidates(TDA)
    assert {method.settings()["rest"] for method in grid} == {"skip", "4bit"}
    assert any(method.settings()["prior"] and method.settings()["first"] for method in grid)


@pytest.mark.usefixtures("little_text")
def test_presets_are_found_on_held_out_answers(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []
    times = type("Times", (), {"dense": [2.0, 2.0], "sparse": [1.0, 1.0]})()
    monkeypatch.setattr(rule, "time_arms", lambda *arguments: (timed.append(arguments), times)[1])
    table, rows = find_presets(lm, ["magnitude", "griffin", "tda"])
    assert {name: len(found) for name, found in rows.items()} == {
        name: len(candidates(METHODS[name])) for name in table.methods
    }
    for name, found in table.methods.items():  # the speed of those that are chosen is measured then
        again = [dataclasses.replace(preset, speedup=None) for preset in choose(METHODS[name], rows[name])]
        assert again == [dataclasses.replace(preset, speedup=None) for preset in found]
    assert (table.model, table.precision, table.texts) == ("tiny-llama", "float32", 3)
    assert list(table.methods) == ["magnitude", "griffin", "tda"] and table.scored_tokens <= 3 * 12
    for name, found in table.methods.items():
        kind: Any = METHODS[name]
        assert found[0].name == "exact" and (found[0].kl, found[0].byte_bound, found[0].agreement) == (0, 1, 1)
        by_name = {preset.name: preset for preset in found}
        assert by_name["default"].kl <= MOST_KL
        (totals,) = score_all(lm, [by_name["default"].of(kind)], "")
        assert (totals.kl, totals.byte_bound) == (by_name["default"].kl, by_name["default"].byte_bound)
    chosen = {preset.name: preset for preset in table.methods["tda"]}
    assert timed and chosen["paper"].speedup == 2
    assert step_bytes(lm).dense > 0 and Magnitude(keep=1) == table.methods["magnitude"][0].of(Magnitude)


def test_what_is_saved_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    presets = [
        Preset("exact", {"cett": 0.0, "exempt": [0, 2]}, 0, 1, 1, 1),
        Preset("default", {"cett": 0.2, "rest": "4bit", "prior": 64.0}, 0.1, 0.9, 0.4, 1.8, 1.7),
    ]
    table = shipping.PresetTable("m", "int8", "a machine", 12, 700, {"tda": presets})
    monkeypatch.setattr(shipping, "FILE", tmp_path / "presets.json")
    shipped.cache_clear()
    try:
        assert presets_of(TDA) == [] and presets_of(GRIFFIN) == []
        (tmp_path / "presets.json").write_text(table.text(), "utf-8")
        shipped.cache_clear()
        assert shipped() == table and presets_of(TDA) == presets and presets_of(GRIFFIN) == []
        assert presets[0].of(TDA) == TDA(cett=0, exempt=(0, 2))
        assert presets[1].of(TDA) == TDA(cett=0.2, rest="4bit", prior=64)
    finally:
        shipped.cache_clear()


@pytest.mark.skipif(not FILE.is_file(), reason="no presets are shipped")
def test_shipped_presets_rise_from_exact_to_aggressive_and_are_the_defaults() -> None:
    table = shipped()
    assert table.text() == FILE.read_text("utf-8") and table.texts == 12 and table.machine
    assert set(table.methods) <= set(METHODS)
    for name, found in table.methods.items():
        kind: Any = METHODS[name]
        by_name = {preset.name: preset for preset in found}
        rising = [by_name[each] for each in ("exact", "default", "aggressive") if each in by_name]
        assert [preset.kl for preset in rising] == sorted(preset.kl for preset in rising)
        assert [preset.byte_bound for preset in rising] == sorted(preset.byte_bound for preset in rising)
        assert by_name["exact"].kl == 0 and by_name["default"].kl <= MOST_KL
        assert getattr(by_name["exact"].of(kind), kind.dial.setting) == kind.dial.dense
        if "aggressive" in by_name:
            assert by_name["aggressive"].kl >= 2 * by_name["default"].kl
            assert by_name["aggressive"].byte_bound > by_name["default"].byte_bound
        if has_paper(kind):
            assert by_name["paper"].of(kind) == paper(kind)
    assert {preset.name: preset for preset in table.methods["tda"]}["default"].of(TDA) == TDA()
