"""What it takes to beat a control, and that a method which does not says so."""

from __future__ import annotations

from typing import Any

import pytest

from tda_demo.methods import METHODS
from tda_demo.methods.controls import against, beats, is_control, not_beating, unbeaten


def test_three_methods_are_controls() -> None:
    assert [name for name in METHODS if is_control(name)] == ["random", "magnitude", "prior"]
    assert not is_control("no-such")


@pytest.mark.parametrize(
    ("own", "control", "expected"),
    [
        ((50, 0.1), (50, 0.2), True),
        ((49, 0.1), (50, 0.2), True),
        ((50.4, 0.1), (50, 0.2), True),  # within a percent
        ((50, 0.2), (50, 0.2), False),
        ((50, 0.3), (40, 0.2), False),
        ((60, 0.1), (50, 0.2), None),
        ((40, 0.3), (50, 0.2), None),
    ],
)
def test_a_control_is_beaten_at_equal_bytes_only(
    own: tuple[float, float], control: tuple[float, float], expected: bool | None
) -> None:
    assert beats(*own, *control) is expected


def test_a_race_against_a_control_is_told_in_a_sentence() -> None:
    assert "griffin beats the control random" in against("griffin", 5, 0.1, "random", 5, 0.2)
    assert "griffin does not beat the control random" in against("griffin", 5, 0.2, "random", 5, 0.1)
    assert "set both by bytes" in against("griffin", 5, 0.2, "random", 9, 0.1)
    assert against("griffin", None, 0.2, "random", 9, 0.1) == ""


def test_rows_that_a_control_is_as_good_as_are_named() -> None:
    def row(method: str, step_bytes: int, kl: float, precision: str = "int8") -> dict[str, Any]:
        return {
            "model": "m",
            "method": method,
            "settings": "{}",
            "precision": precision,
            "step_bytes": step_bytes,
            "kl": kl,
            "tokens_sha256": "t",
        }

    rows = [
        row("dense", 100, 0.0),
        row("random", 70, 0.5),
        row("magnitude", 70, 0.9),
        row("griffin", 70, 0.4),
        row("cats", 80, 0.6),
        row("teal", 80, 0.6, precision="float32"),
    ]
    (said,) = not_beating(rows)
    assert said.startswith("cats {} at int8 does not beat the control random: KL 0.600 against 0.500")
    assert unbeaten(rows[4], rows) == rows[1] and unbeaten(rows[3], rows) is None and unbeaten(rows[2], rows) is None
