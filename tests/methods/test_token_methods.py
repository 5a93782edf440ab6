"""Token-level methods: the neurons they choose against float64, their compiled kernels against the specification."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from families import FAMILIES
from parity import PROMPT_IDS, STEPS
from tiny import tiny
from token_methods import HALF, LIKE_LLAMA, inputs, rule_of

from tda_demo.calibration import quantiles
from tda_demo.calibration.sources import ANSWERS
from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.cpu.compiled_step import CpuStepEngine
from tda_demo.decode.cpu.fast_linears import FastLinearsEngine
from tda_demo.decode.eager import EagerEngine
from tda_demo.methods import TT
from tda_demo.model.configuration import activation_function
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.loading import LoadedModel

pytestmark = pytest.mark.usefixtures("little_text")

PLAIN = ("opt", "gpt_neox")


def strength_in_float64(lm: LoadedModel, name: str, block: FeedForward, x: torch.Tensor, a: torch.Tensor) -> Any:
    norms = block.down.weight.double().norm(dim=0)
    first = (x.double() @ block.linears[0].weight.double().T)[:, : block.d_ff]
    first = first if block.linears[0].bias is None else first + block.linears[0].bias.double()
    return {"tt": a.double().abs() * norms, "cats": activation_function(lm.model)(first).abs()}[name]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["cats", "tt"])
def test_the_neurons_that_fire_are_those_above_the_threshold(family: str, name: str) -> None:
    lm = tiny(family)
    rule: Any = rule_of(lm, name)
    for block, x, a in inputs(lm):
        strength = strength_in_float64(lm, name, block, x, a)
        limit = rule.limits[block.layer]
        fired = rule.fire(block, x, a)
        sure = (strength - limit).abs() > 1e-5 * abs(limit)
        assert torch.equal(fired[sure], (strength >= limit)[sure])
        assert 0 < fired.sum() < fired.numel()


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("cett", [0.1, 0.4])
def test_truncation_errs_as_much_as_it_was_told_to(family: str, cett: float) -> None:
    """In float64, every token's own neurons, over the tokens it was calibrated on; to a fiftieth of the neurons."""
    lm = tiny(family)
    rule: Any = TT(cett=cett).bind(lm)
    for block, _, a in quantiles.observed_tokens(lm, ANSWERS):
        a, down = a.double(), block.down.weight.double()
        strength = a.abs() * down.norm(dim=0)

        def error(share_left_out: float, a: Any = a, down: Any = down, strength: Any = strength) -> float:
            left_out = strength <= strength.quantile(share_left_out)
            return float((((a * left_out) @ down.T).norm(dim=1) / (a @ down.T).norm(dim=1)).mean())

        found = float((strength <= rule.limits[block.layer]).double().mean())
        assert error(max(found - 0.021, 0)) - 0.01 <= cett <= error(min(found + 0.021, 1)) + 0.01


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", HALF)
def test_an_engine_computes_what_the_rule_says_and_counts_what_it_reads(family: str, name: str) -> None:
    lm = tiny(family)
    rule = rule_of(lm, name)
    engine = engine_for(lm, rule)
    assert type(engine) is (FastLinearsEngine if family in PLAIN and name != "tt" else type(engine_for(lm)))
    prefill = engine.prefill(PROMPT_IDS, rule)
    assert prefill.plan is rule and prefill.fired.shape == (len(PROMPT_IDS), 3)
    dense, arm = engine.dense_arm(prefill, len(STEPS)), cast(Any, engine.sparse_arm(prefill, len(STEPS)))
    expected = cast(Any, EagerEngine(lm).sparse_arm(prefill, len(STEPS)))
    # Of a sketch compiled kernels round products of activations and scales; later layers' strengths differ by it.
    close, share = (2e-2, 0.5) if name == "sketch" else (2e-3, 0.8)
    agreeing, counts = 0, []
    for token in STEPS:
        found, wanted = arm.step(token), expected.step(token)
        if arm.computed() == expected.computed():  # a strength on the threshold may fall on either side
            agreeing += 1
            torch.testing.assert_close(found, wanted, rtol=close, atol=close)
        counts.append(arm.computed())
        assert arm.weight_bytes == step_bytes(lm, rule).read(rule, arm.computed()).bytes
        if not isinstance(engine, CpuStepEngine):  # skips nothing
            assert arm.weight_bytes == (dense.weight_bytes or 0) + rule.extra_bytes
    assert agreeing > share * len(STEPS)
    assert 0.1 < np.mean(counts) / 70 < 0.9
    assert dense.weight_bytes == step_bytes(lm).dense


@pytest.mark.parametrize(("name", "bytes_of"), [("tt", lambda k: 2 * 70 + k), ("cats", lambda k: 70 + 2 * k)])
def test_matrices_read_in_full_are_counted_in_full(name: str, bytes_of: Any) -> None:
    lm = tiny(LIKE_LLAMA)
    rule = rule_of(lm, name)
    engine = engine_for(lm, rule)
    prefill = engine.prefill(PROMPT_IDS, rule)
    arm, dense = cast(Any, engine.sparse_arm(prefill, 1)), engine.dense_arm(prefill, 1)
    assert arm.weight_bytes is None
    arm.step(40)
    rows = sum(bytes_of(k) for k in arm.computed())
    norms = 3 * 70 * 4 if name == "tt" else 0
    assert cast(int, dense.weight_bytes) - cast(int, arm.weight_bytes) == (3 * 3 * 70 - rows) * 32 * 4 - norms


def test_thresholds_let_the_share_asked_for_through() -> None:
    lm = tiny(LIKE_LLAMA)
    for name in HALF:
        rule = rule_of(lm, name)
        shares = [float(rule.fire(block, x, a).float().mean()) for block, x, a in inputs(lm)]
        assert 0.25 < np.mean(shares) < 0.75
