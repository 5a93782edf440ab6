"""The sketch: what it predicts and where that errs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from tiny import tiny
from token_methods import LIKE_LLAMA, inputs, rule_of

from tda_demo.kernels.q4 import decode, decode_columns
from tda_demo.model.configuration import activation_function

pytestmark = pytest.mark.usefixtures("little_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sketch_is_the_block_in_four_bits_and_knows_where_it_errs(family: str) -> None:
    """In float64."""
    lm = tiny(family)
    rule: Any = rule_of(lm, "sketch")
    for block, x, a in inputs(lm):
        copy = rule.copies[block.layer]
        x64 = x.double()
        unit = x64.abs().amax(dim=1, keepdim=True) / 127  # 32 columns are one group
        whole = (x64 / unit).round() * unit
        rows = [decode(part).double() for part in (copy.gate, copy.up) if part is not None]
        first = (whole @ rows[0].T) + (0 if copy.gate is not None or block.up.bias is None else block.up.bias.double())
        act = activation_function(lm.model)
        expected = act(first) * (whole @ rows[1].T) if copy.gate is not None else act(first)
        predicted, error = rule._predicted(block, x)
        torch.testing.assert_close(predicted.double(), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(copy.activations(act, x), predicted)

        down = decode_columns(copy.down).double().T
        found = rule.rest(block, x, torch.zeros_like(a, dtype=torch.bool))
        wanted = expected @ down
        assert (found - wanted).norm() < 1e-3 * wanted.norm()
        true = a.double() @ block.down.weight.double().T
        assert (wanted - true).norm() < 0.2 * true.norm()

        each = a.double()[:, :, None] * block.down.weight.double().T - expected[:, :, None] * down
        assert np.corrcoef(each.norm(dim=2).flatten(), error.double().flatten())[0, 1] > 0.6
        assert 0.5 < error.square().mean().sqrt() / each.square().sum(dim=2).mean().sqrt() < 2


def test_the_sketch_counts_its_copies_and_errors() -> None:
    rule = rule_of(tiny(LIKE_LLAMA), "sketch")
    # Per neuron: of gate and of up a record of 64 columns, 32 of them filled up, and four kinds of error. Of down a
    # tile of 32 outputs for every 32 neurons, 70 of them in 96 filled up.
    assert rule.extra_bytes == 3 * (70 * (2 * 40 + 4 * 4) + 96 // 32 * 640)
