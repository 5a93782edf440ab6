"""The plots, from arrays to what the browser draws."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from tda_demo.ui.race.figures import layer_bars, neuron_map, token_map, visible

LAYERS, D_FF = 3, 10
KEPT, WIDTHS = [4, 5, 10], [D_FF] * LAYERS


def array(spec: dict[str, str]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(spec["bdata"]), dtype=spec["dtype"])
    return flat.reshape([int(size) for size in spec["shape"].split(",")])


def tokens_of(prompt: int, steps: int, most: int = 100, d_ff: int = D_FF) -> dict[str, Any]:
    random = np.random.default_rng(0)
    return token_map(
        [f"p{index}" for index in range(prompt)],
        random.integers(0, d_ff, (prompt, LAYERS)),
        [f"t{index}" for index in range(steps)],
        [np.full(LAYERS, index % d_ff) for index in range(steps)],
        [d_ff // 2] * LAYERS,
        [d_ff] * LAYERS,
        most,
        "TT",
    )


def test_token_map_has_a_row_per_layer_and_a_column_per_token() -> None:
    value = tokens_of(4, 2)
    fired = value["views"]["fired"]["data"][0]
    assert array(fired["z"]).shape == (LAYERS, 6)
    assert (array(fired["z"])[:, 4:] == [0, 1]).all()
    assert (fired["zmin"], fired["zmax"]) == (0, D_FF)
    assert value["hover"]["tokens"] == ["p0", "p1", "p2", "p3", "t0", "t1"]


def test_the_prompt_is_computed_whole_and_the_rest_as_kept() -> None:
    value = token_map(["a", "b"], np.zeros((2, LAYERS)), ["c"], [np.zeros(LAYERS)], KEPT, WIDTHS, 8, "TT")
    computed = value["views"]["computed"]["data"][0]
    assert array(computed["z"]).tolist() == [[10, 4], [10, 5], [10, 10]]
    assert list(computed["x"]) == [-0.5, 1.5, 2.5]


def test_sets_chosen_anew_at_every_step_are_drawn_step_by_step() -> None:
    value = token_map(["a"], np.zeros((1, LAYERS)), ["b", "c"], [np.full(LAYERS, 2), KEPT], None, WIDTHS, 8, "TT")
    computed = value["views"]["computed"]["data"][0]
    assert array(computed["z"]).tolist() == [[10, 2, 4], [10, 2, 5], [10, 2, 10]]
    assert list(computed["x"]) == [-0.5, 0.5, 1.5, 2.5] and value["hover"]["kept"] is None


def test_before_the_first_step_there_is_only_the_prompt() -> None:
    value = tokens_of(4, 0)
    assert array(value["views"]["fired"]["data"][0]["z"]).shape == (LAYERS, 4)
    assert array(value["views"]["computed"]["data"][0]["z"]).shape == (LAYERS, 1)


def test_the_room_for_new_tokens_grows_rarely() -> None:
    ends = {tokens_of(4, steps, most=500)["views"]["fired"]["layout"]["xaxis"]["range"][1] for steps in range(1, 97)}
    assert len(ends) == 2


def test_a_long_prompt_shows_its_end() -> None:
    value = tokens_of(1000, 1)
    assert value["hover"]["hidden"] == 1000 - 192
    assert value["hover"]["tokens"][0] == "p808"
    assert "808 earlier tokens" in value["views"]["fired"]["layout"]["annotations"][0]["text"]


def test_the_largest_values_stay_small() -> None:
    longest = token_map(
        ["x" * 6] * 5000,
        np.full((5000, 30), 1500),
        ["x" * 6] * 512,
        [np.full(30, 1500)] * 512,
        [800] * 30,
        [1536] * 30,
        512,
        "TT",
    )
    widest = neuron_map([np.arange(8192)] * 30, [8192] * 30)
    assert len(json.dumps(longest)) < 100_000
    assert len(json.dumps(widest)) < 100_000


def test_layer_bars_show_shares_and_after_the_race_the_errors() -> None:
    before, after = layer_bars(KEPT, WIDTHS, [], 0.2), layer_bars(KEPT, WIDTHS, [0.1, 0.9, 0.3], 0.2)
    bars, dots = after["views"]["layers"]["data"]
    assert after["summary"] == "from 40 % to 100 % of a layer's neurons; realised CETT from 0.10 to 0.90"
    assert list(bars["y"]) == [40, 50, 100]
    assert list(dots["y"]) == [0.1, 0.9, 0.3] and not before["views"]["layers"]["data"][1]["y"]
    assert after["views"]["layers"]["layout"]["yaxis2"]["range"][1] > 0.9


def test_a_method_that_aims_at_no_cett_has_no_line_there() -> None:
    aimed, free = (layer_bars(KEPT, WIDTHS, [0.1] * 3, target)["views"]["layers"]["layout"] for target in (0.2, None))
    assert len(aimed["shapes"]) == 1 and not free.get("shapes")


def test_a_neuron_is_a_column() -> None:
    value = neuron_map([np.array([0, 2]), np.array([], dtype=int)], [3, 3])
    assert array(value["views"]["neurons"]["data"][0]["z"]).tolist() == [[100, 0, 100], [0, 0, 0]]


def test_wide_layers_are_binned() -> None:
    value = neuron_map([np.arange(1536)], [3072])
    z = array(value["views"]["neurons"]["data"][0]["z"])
    assert z.shape == (1, 1536) and value["hover"]["per_column"] == 2
    assert (z[0, :768] == 100).all() and (z[0, 768:] == 0).all()


@pytest.mark.parametrize(
    ("token", "shown"),
    [(" a\n", "␣a↵"), ("", "∅"), ("\x00\x1b", "\\u0000\\u001b"), ("<b>", "<b>"), ("\u202e", "\\u202e")],
)
def test_tokens_are_shown_with_what_cannot_be_seen(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_no_text_of_a_visitor_enters_a_figure() -> None:
    value = token_map(["<b>hostile</b>"], np.zeros((1, LAYERS)), [], [], KEPT, WIDTHS, 8, "TT")
    assert "hostile" not in json.dumps(value["views"])
