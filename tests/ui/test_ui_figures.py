"""The plots, from arrays to what the browser draws."""

from __future__ import annotations

import base64
import json

import numpy as np

from tda_demo.ui.race.figures import layer_bars, neuron_map

LAYERS, D_FF = 3, 10
KEPT, WIDTHS = [4, 5, 10], [D_FF] * LAYERS


def array(spec: dict[str, str]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(spec["bdata"]), dtype=spec["dtype"])
    return flat.reshape([int(size) for size in spec["shape"].split(",")])


def test_the_largest_values_stay_small() -> None:
    widest = neuron_map([np.arange(8192)] * 30, [8192] * 30)
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
