"""Presets: what the controls hold before anything is pressed."""

from __future__ import annotations

from typing import Any

import pytest

from tda_demo.methods import GRIFFIN, METHODS, TDA
from tda_demo.methods.presets import Preset
from tda_demo.ui.race import method_controls
from tda_demo.ui.race.method_controls import settings

FOUND = {
    TDA: [
        Preset("exact", {"cett": 0.0}, 0, 1, 1, 1),
        Preset(
            "default", {"cett": 0.31, "prior": 64.0, "rest": "4bit", "exempt": [0, 2]}, 0.1234, 0.9, 0.4, 1.8, 1.714
        ),
        Preset("aggressive", {"cett": 0.6}, 0.4, 0.7, 0.2, 2.345),
    ]
}


@pytest.fixture(autouse=True)
def presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method_controls, "presets_of", lambda kind: FOUND.get(kind, []))


def test_controls_begin_at_the_default_preset_and_without_one_at_the_methods_defaults() -> None:
    held = {(setting.method, setting.field.name): setting for setting in settings()}
    assert {kind for kind, _ in held} == set(METHODS.values())
    found: dict[str, Any] = {name: setting.default for (kind, name), setting in held.items() if kind is TDA}
    assert (found["cett"], found["prior"], found["rest"], found["first"]) == (0.31, 64, "4bit", 0)
    assert found["exempt"].replace(" ", "") == "0,2" and found["shape"] == TDA().shape
    aggressive = held[TDA, "cett"].of(FOUND[TDA][2])
    assert aggressive == 0.6
    for (kind, name), setting in held.items():
        if kind is GRIFFIN:
            assert setting.default == setting.control_value(getattr(GRIFFIN(), name))
