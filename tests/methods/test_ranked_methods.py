"""Methods that keep a fixed share of a layer: their choice against one made in float64, and what each promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from tiny import PROMPT, tiny

from tda_demo.calibration import answers
from tda_demo.decode.choose import engine_for
from tda_demo.methods import GRIFFIN, CoreInfer, Magnitude, Method, Prior, Random
from tda_demo.methods.ranked import highest
from tda_demo.model.hooks import observe
from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError

OTHER_PROMPT = " ".join(f"w{number}" for number in (80, 81, 7, 33, 52, 21, 66))
WIDTH = 70
_ONE_LAYER: Any = SimpleNamespace(blocks=[None])


def chosen(lm: LoadedModel, method: Method, prompt: str = PROMPT) -> list[list[int]]:
    active = engine_for(lm).prefill(lm.prompt_ids(prompt), method.bind(lm)).active
    return [indices.tolist() for indices in active.indices]


def first_by(scores: Any, count: int) -> list[int]:
    """The ``count`` highest of ``scores``, of equal ones the first."""
    return sorted(sorted(range(len(scores)), key=lambda neuron: (-scores[neuron], neuron))[:count])


def prompt_activations(lm: LoadedModel) -> list[np.ndarray]:
    seen: list[np.ndarray] = []
    with observe(lm.blocks, lambda _block, a: seen.append(a.double().numpy().copy())):
        lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]))
    return seen


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_highest_are_kept_and_of_equals_the_first(scores: list[int], keep: float, other: float) -> None:
    found = highest(torch.tensor(scores), keep)
    assert found.nonzero().flatten().tolist() == first_by(scores, int(keep * len(scores)))
    fewer, more = (highest(torch.tensor(scores), each) for each in sorted((keep, other)))
    assert not (fewer & ~more).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_griffins_neurons(family: str) -> None:
    lm = tiny(family)
    for a, found in zip(prompt_activations(lm), chosen(lm, GRIFFIN()), strict=True):
        scores = [0.0] * WIDTH
        for token in a:
            for neuron in range(WIDTH):
                scores[neuron] += float(token[neuron] ** 2 / (token @ token))
        assert found == first_by(np.sqrt(scores), 35)


@pytest.mark.parametrize("family", FAMILIES)
def test_coreinfers_neurons(family: str) -> None:
    lm = tiny(family)
    found = chosen(lm, CoreInfer(keep=0.4, token_share=0.2, exempt_first=0, exempt_last=0))
    for a, neurons in zip(prompt_activations(lm), found, strict=True):
        votes = [0] * WIDTH
        for token in a:
            for neuron in first_by(abs(token), 14):
                votes[neuron] += bool(token[neuron])
        assert neurons == first_by(votes, 28)


@pytest.mark.parametrize("family", FAMILIES)
def test_magnitudes_neurons_are_the_same_for_every_prompt(family: str) -> None:
    lm = tiny(family)
    found = chosen(lm, Magnitude(keep=0.3))
    assert found == chosen(lm, Magnitude(keep=0.3), OTHER_PROMPT) != chosen(lm, GRIFFIN(keep=0.3))
    for block, neurons in zip(lm.blocks, found, strict=True):
        up, down = block.up.weight.double().numpy(), block.down.weight.double().numpy()
        sizes = [np.linalg.norm(down[:, j]) * np.linalg.norm(up[j]) for j in range(WIDTH)]
        gate = block.gate.weight.double().numpy() if block.gate else None
        if gate is not None:
            sizes = [size * np.linalg.norm(gate[j]) for j, size in enumerate(sizes)]
        assert neurons == first_by(sizes, 21)


@pytest.mark.usefixtures("little_text")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_priors_neurons_are_those_that_fire_most_in_answers_whatever_the_prompt(family: str) -> None:
    lm = tiny(family)
    found = chosen(lm, Prior(keep=0.3))
    assert found == chosen(lm, Prior(keep=0.3), OTHER_PROMPT) != chosen(lm, GRIFFIN(keep=0.3))
    seen: list[np.ndarray] = []
    sums, tokens = np.zeros((3, WIDTH)), 0
    for text in answers.answers(lm, held_out=False):
        seen.clear()
        with observe(lm.blocks, lambda _block, a: seen.append(a.double().numpy().copy())):
            lm.model(input_ids=torch.tensor([[*text.question, *text.answer]]))
        tokens += len(text.answer)
        for layer, a in enumerate(seen):
            own = a[len(text.question) :]
            sums[layer] += (own**2 / (own**2).sum(axis=1, keepdims=True).clip(1e-30)).sum(axis=0)
    # The kept file holds the means in half precision, in which neurons that lie within a thousandth may be equal.
    kept = (sums / tokens * WIDTH).astype(np.float16)
    for scores, neurons in zip(kept, found, strict=True):
        worst = scores[neurons].min()
        left_out = np.setdiff1d(np.arange(WIDTH), neurons)
        assert len(neurons) == 21 and scores[left_out].max() <= worst * (1 + 2e-3)


def test_a_lot_falls_alike_for_one_seed_and_on_every_neuron_over_many(lm: LoadedModel) -> None:
    assert chosen(lm, Random(seed=3)) == chosen(lm, Random(seed=3), OTHER_PROMPT) != chosen(lm, Random(seed=4))
    nothing = torch.zeros(1, WIDTH)
    drawn = [[Random(0.3, seed).bind(lm).select(block, nothing) for block in lm.blocks] for seed in range(300)]
    assert all(int(mask.sum()) == 21 for masks in drawn for mask in masks)
    times = torch.stack([torch.stack(masks) for masks in drawn]).sum(dim=0)
    # Of 300 draws at 0.3: 90, standard deviation 7.9; six of them away happens to one of 210 in four million tries.
    assert (times - 90).abs().max() < 6 * 7.9
    assert not torch.equal(drawn[0][0], drawn[0][1])


@pytest.mark.parametrize(
    ("first", "last", "dense"),
    [(0, 0, []), (1, 0, [0]), (0, 1, [2]), (1, 1, [0, 2]), (2, 1, [0, 1, 2]), (5, 1, [0, 1, 2]), (0, 9, [0, 1, 2])],
)
def test_exempt_layers_are_dense_also_where_they_are_more_than_all(
    lm: LoadedModel, first: int, last: int, dense: list[int]
) -> None:
    counts = [len(each) for each in chosen(lm, CoreInfer(exempt_first=first, exempt_last=last))]
    assert counts == [WIDTH if layer in dense else 28 for layer in range(3)]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=12, max_size=12), min_size=1, max_size=9), st.floats(0, 1))
def test_votes_where_activations_are_equal(rows: list[list[int]], share: float) -> None:
    """bfloat16 activations often are; a token's vote then goes to the first of them."""
    votes = [0] * 12
    for row in rows:
        for neuron in first_by([abs(value) for value in row], int(share * 12)):
            votes[neuron] += row[neuron] != 0
    block: Any = SimpleNamespace(layer=0)
    for keep in (0.25, 0.5):
        mask = CoreInfer(keep, share, 0, 0).bind(_ONE_LAYER).select(block, torch.tensor(rows, dtype=torch.bfloat16))
        assert mask.nonzero().flatten().tolist() == first_by(votes, int(keep * 12))


def test_a_neuron_that_does_not_fire_gets_no_vote() -> None:
    lm = tiny("opt")
    selector = CoreInfer(keep=1 / WIDTH, token_share=0.5, exempt_first=0, exempt_last=0).bind(lm)
    activations = torch.zeros(3, WIDTH)
    activations[:2, 69] = 1
    assert selector.select(lm.blocks[0], activations).nonzero().flatten().tolist() == [69]


@pytest.mark.usefixtures("little_text")
@pytest.mark.parametrize(
    "method", [GRIFFIN(keep=0), CoreInfer(0, 0, 0, 0), Random(keep=0), Magnitude(keep=0), Prior(keep=0)]
)
def test_no_neuron_kept_still_decodes(lm: LoadedModel, method: Method) -> None:
    engine = engine_for(lm)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), method.bind(lm))
    assert prefill.active.counts() == [0, 0, 0]
    assert engine.sparse_arm(prefill, 1).step(40).isfinite().all()


def test_a_neuron_fires_at_the_tokens_where_it_reaches_the_root_mean_square(lm: LoadedModel) -> None:
    activations = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
    activations[3] = 0  # as after a ReLU: nothing fires
    rows = activations.numpy()
    selector = GRIFFIN().bind(lm)
    expected = [int(((row**2 >= (row**2).mean()) & (row != 0)).sum()) for row in rows]
    assert selector.count_fired(lm.blocks[0], activations).tolist() == expected
    assert expected[3] == 0 and all(expected[token] for token in (0, 1, 2, 4))
    computed = torch.arange(10)  # a step knows the others' activations as little as a sparse block computes them
    part = rows[:, :10] ** 2
    expected = [int(((row >= row.sum() / WIDTH) & (row > 0)).sum()) for row in part]
    assert selector.count_fired(lm.blocks[0], activations[:, :10], computed).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (GRIFFIN, {"keep": 1.5}, "keep is 1.5; it must be a number from 0 to 1"),
        (GRIFFIN, {"keep": float("nan")}, "keep is nan"),
        (CoreInfer, {"token_share": -0.1}, "token_share is -0.1"),
        (CoreInfer, {"exempt_last": -1}, "exempt_last is -1; it must be a number 0 or more"),
        (Random, {"seed": -1}, "seed is -1"),
        (Magnitude, {"keep": -0.5}, "keep is -0.5"),
        (Prior, {"keep": 2}, "keep is 2; it must be a number from 0 to 1"),
        (Prior, {"first": -1}, "first is -1; it must be a number from 0 to 4096"),
        (Random, {"rest": "8bit"}, "rest is 8bit; it must be skip or 4bit"),
        (GRIFFIN, {"prior": float("inf")}, "prior is inf; it must be a number 0 or more"),
        (CoreInfer, {"refresh": -1}, "refresh is -1; it must be a number 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**settings)


@pytest.mark.usefixtures("little_text")
def test_a_budget_is_met_on_a_dial_that_falls(lm: LoadedModel) -> None:
    from tda_demo.evaluate import budget

    curve = budget.quality_curve(lm, GRIFFIN())
    assert curve.kl[0] == 0 < curve.kl[-1] and curve.values[0] == 1 > curve.values[-1]
    generous, strict = (budget.within(lm, GRIFFIN(), kl=kl).settings()["keep"] for kl in (curve.kl[-1] / 2, 0))
    assert 0.1 < generous < 1 == strict
    spent = np.interp(1 - generous, [1 - value for value in curve.values], np.maximum.accumulate(curve.kl))
    assert spent == pytest.approx(curve.kl[-1] / 2)
