"""The heatmap's value, from a race's counts to what the canvas reads."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from tda_demo.race.events import PromptRead
from tda_demo.ui.race.heat import heat, scale, visible
from tda_demo.ui.race.view import MethodView

LAYERS, D_FF = 3, 10


def method(prompt: int, steps: int, layers: int = LAYERS, width: int = D_FF, text: str = "p") -> MethodView:
    random = np.random.default_rng(0)
    fired = random.integers(0, width, (prompt, layers))
    read = PromptRead((text,) * prompt, 1.0, 1.0, 1.0, None, fired, None, kept=(width // 2,) * layers)
    arm = MethodView(prompt=read)
    arm.fired = [np.full(layers, step % width) for step in range(steps)]
    return arm


def counts(packed: str) -> list[int]:
    return np.frombuffer(base64.b64decode(packed), dtype="<u2").tolist()


def test_every_token_is_a_column_of_raw_counts() -> None:
    arm = method(4, 2)
    value = heat(arm, [D_FF] * LAYERS, 20)
    assert value is not None and arm.prompt is not None
    assert counts(value["prompt"]) == arm.prompt.fired.ravel().tolist()
    assert [counts(column) for column in value["columns"]] == [[0] * LAYERS, [1] * LAYERS]
    assert (value["room"], value["kept"], value["hidden"]) == (20, [5] * LAYERS, 0)


def test_a_column_more_leaves_all_before_it_as_they_were() -> None:
    before, after = (heat(method(4, steps), [D_FF] * LAYERS, 20) for steps in (5, 6))
    assert before and after and after.pop("columns")[:5] == before.pop("columns") and before == after


def test_the_scale_is_fixed_by_the_prompt() -> None:
    prompt = np.repeat(np.arange(101)[:, None], 2, axis=1)
    assert scale(prompt, [1000, 1000]) == (0.002, 0.098)
    low, high = scale(np.full((5, 2), 7), [100, 100])
    assert low == 0.07 and high > low  # of cells that are all alike, too


def test_a_long_prompt_shows_its_end_and_values_stay_small() -> None:
    value = heat(method(5000, 512, 30, 1536, "x" * 6), [1536] * 30, 512)
    assert value is not None and value["hidden"] == 5000 - 192 and len(value["prompt_tokens"]) == 192
    assert len(json.dumps(value)) < 100_000


def test_marks_are_what_was_judged() -> None:
    arm = method(2, 3)
    arm.agrees = [True, False, True]
    value = heat(arm, [D_FF] * LAYERS, 20)
    assert value and value["marks"] == "101"
    assert heat(MethodView(), [D_FF], 20) is None


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" a\n", "␣a↵"), ("", "∅"), ("\x00\x1b", "\\u0000\\u001b"), ("<b>", "<b>"), ("\u202e", "\\u202e")],
)
def test_tokens_are_shown_with_what_cannot_be_seen(token: str, shown: str) -> None:
    assert visible(token) == shown
