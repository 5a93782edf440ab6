"""TEAL against float64, on every family, and its kernel against the bytes counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from tiny import PROMPT, tiny
from transformers import DynamicCache

from tda_demo.calibration.channel_shares import MOST, greedy, shares_at
from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.cpu.compiled_step import TokenArm
from tda_demo.decode.eager import EagerEngine
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import TEAL
from tda_demo.methods.teal import ChannelPolicy
from tda_demo.model.loading import LoadedModel

pytestmark = pytest.mark.usefixtures("little_text")


def steps(lm: LoadedModel) -> torch.Tensor:
    """Logits of the prompt's last token and of two steps after it, as transformers gives them."""
    cache = DynamicCache(config=lm.model.config)
    calls = [lm.prompt_ids(PROMPT), [40], [41]]
    return torch.cat([lm.model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0, -1:] for ids in calls])


def planted(lm: LoadedModel) -> ChannelPolicy:
    """Limits another for every matrix, so that one taken for another shows."""
    sizes = [len(block.layer_linears) for block in lm.blocks]
    return ChannelPolicy(lm, [np.linspace(0.2, 0.6, size) + 0.03 * layer for layer, size in enumerate(sizes)])


def by_hand(lm: LoadedModel, rule: ChannelPolicy) -> list[list[int]]:
    """Makes the model leave channels out in float64, matrix by matrix; the channels read by the last token."""
    lm.model.double()
    counts: list[list[int]] = [[0] * len(block.layer_linears) for block in lm.blocks]
    for block in lm.blocks:
        for at, linear in enumerate(block.layer_linears):

            def hook(_module, inputs, layer=block.layer, at=at):
                if inputs[0].reshape(-1, inputs[0].shape[-1]).shape[0] > 1:
                    return None
                kept = inputs[0].abs() > float(rule.limits[layer][at])
                counts[layer][at] = int(kept.sum())
                return torch.where(kept, inputs[0], 0)

            linear.register_forward_pre_hook(hook)
    return counts


@pytest.mark.parametrize("family", FAMILIES)
def test_no_sparsity_is_exact_and_the_model_is_restored(family: str) -> None:
    lm = tiny(family)
    dense = steps(lm)
    with TEAL(sparsity=0)(lm):
        assert torch.equal(steps(lm), dense)
    with TEAL(sparsity=0.5)(lm):
        sparse, again = steps(lm), steps(lm)
    assert torch.equal(sparse, again) and torch.equal(sparse[0], dense[0]) and not torch.equal(sparse[1:], dense[1:])
    assert torch.equal(steps(lm), dense)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_channels_and_bytes_of_every_matrix_are_those_of_float64(family: str) -> None:
    lm, reference = tiny(family), tiny(family)
    rule = planted(lm)
    unread: list[Any] = []
    cache = DynamicCache(config=lm.model.config)
    lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]), past_key_values=cache)
    with rule.on(lm.blocks, lambda _block, use: unread.append(use.unread)):
        found = lm.model(input_ids=torch.tensor([[40]]), past_key_values=cache).logits[0, -1]
    spared = torch.cat(unread).sum(dim=0).tolist()
    engine = EagerEngine(lm)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), rule)
    arm = engine.sparse_arm(prefill, 1)
    torch.testing.assert_close(arm.step(40), found)
    assert arm.weight_bytes == (engine.dense_arm(prefill, 1).weight_bytes or 0) + rule.extra_bytes  # it skips nothing

    counts = by_hand(reference, rule)
    cache = DynamicCache(config=lm.model.config)
    for ids in (lm.prompt_ids(PROMPT), [40]):
        expected = reference.model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    left_out = [
        [
            (each.in_features - count) * each.out_features * 4
            for each, count in zip(block.layer_linears, own, strict=True)
        ]
        for block, own in zip(lm.blocks, counts, strict=True)
    ]
    own = len(lm.blocks[0].linears)
    assert spared == [sum(sum(row[-own:]) for row in left_out), sum(sum(row[:-own]) for row in left_out)]
    assert min(spared) > 0


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_the_kernel_computes_and_reads_what_the_rule_says(family: str) -> None:
    lm = tiny(family)
    rule = planted(lm)
    compiled, eager = engine_for(lm, rule), EagerEngine(lm)
    prefill = compiled.prefill(lm.prompt_ids(PROMPT), rule)
    arm, plain = compiled.sparse_arm(prefill, 3), eager.sparse_arm(prefill, 3)
    assert isinstance(arm, TokenArm) and arm.weight_bytes is None
    for token in (40, 41, 42):
        torch.testing.assert_close(arm.step(token), plain.step(token), rtol=1e-4, atol=1e-4)
        assert arm.computed() == plain.computed()
    reference = tiny(family)
    counts = by_hand(reference, rule)
    cache = DynamicCache(config=lm.model.config)
    for ids in (lm.prompt_ids(PROMPT), [40], [41], [42]):
        reference.model(input_ids=torch.tensor([ids]), past_key_values=cache)
    spared = sum(
        (each.in_features - count) * each.out_features * 4
        for block, own in zip(lm.blocks, counts, strict=True)
        for each, count in zip(block.layer_linears, own, strict=True)
    )
    assert arm.weight_bytes == (compiled.dense_arm(prefill, 1).weight_bytes or 0) + rule.extra_bytes - spared


def test_evaluation_counts_the_same_bytes(lm: LoadedModel) -> None:
    rule = planted(lm)
    ids = lm.prompt_ids(PROMPT)
    (found,) = score_texts(lm, [rule], torch.tensor([[*ids, 40, 41]]), len(ids))[0:1]
    weights = step_bytes(lm, rule)
    read = quality(found, weights, rule)
    engine = engine_for(lm, rule)
    arm = engine.sparse_arm(engine.prefill(ids[:-1], rule), 2)
    bytes_read = []
    for token in (ids[-1], 40):
        arm.step(token)
        bytes_read.append(arm.weight_bytes)
    assert read.step_bytes == pytest.approx(np.mean(bytes_read), abs=1)
    assert weights.dense - read.step_bytes > (1 - read.mlp_share) * weights.mlp > 0
    assert min(read.cett) > 0 and read.kl > 0


def test_thresholds_leave_out_what_was_asked_for(lm: LoadedModel) -> None:
    for sparsity in (0.25, 0.5):
        rule = TEAL(sparsity=sparsity).bind(lm)
        again = TEAL(sparsity=sparsity).bind(lm)
        assert isinstance(rule, ChannelPolicy) and isinstance(again, ChannelPolicy)
        assert all(np.array_equal(a, b) for a, b in zip(rule.limits, again.limits, strict=True))
        unread: list[Any] = []
        with rule.on(lm.blocks, lambda _block, use: unread.append(use.unread)):  # noqa: B023
            lm.model(input_ids=torch.arange(3, 97)[None])
        sizes = sum(each.weight.numel() * 4 for block in lm.blocks for each in block.layer_linears)
        left_out = float(torch.stack(unread).sum(dim=(0, 2)).mean()) / sizes
        assert left_out == pytest.approx(sparsity, abs=0.08)


def test_a_damaged_table_is_made_anew(lm: LoadedModel, own_cache: Path) -> None:
    before = TEAL().bind(lm)
    (path,) = (own_cache / "thresholds").glob("*.json")
    path.write_text('[{"magnitudes": 1}]', "utf-8")
    after = TEAL().bind(lm)
    assert isinstance(before, ChannelPolicy) and isinstance(after, ChannelPolicy)
    assert all(np.array_equal(a, b) for a, b in zip(before.limits, after.limits, strict=True))


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=4))
def test_the_search_takes_the_cheapest_step_of_all(costs: list[float]) -> None:
    """Against a search that measures every step anew, on errors that grow as steps are taken."""
    weights = [1 + at for at in range(len(costs))]

    def error(shares: np.ndarray) -> float:
        return float(shares**2 @ np.array(costs))

    shares = np.zeros(len(costs))
    for found in greedy(error, weights)[1:]:
        prices = [
            (error(shares + 0.1 * np.eye(len(costs))[at]) - error(shares)) / weights[at] if share < MOST - 1e-9 else 1e9
            for at, share in enumerate(shares)
        ]
        (raised,) = np.flatnonzero(found - shares)
        assert prices[raised] == pytest.approx(min(prices))
        shares = found
    assert shares == pytest.approx([MOST] * len(costs))


def test_between_two_steps_sparsity_is_linear() -> None:
    path, weights = np.array([[0, 0], [0.1, 0], [0.1, 0.1]]), np.array([1, 3])
    assert shares_at(path, weights, 0.0125) == pytest.approx([0.05, 0])
    assert shares_at(path, weights, 0.0625) == pytest.approx([0.1, 0.05])
