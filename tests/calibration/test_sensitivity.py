"""What layers cost: measured as evaluation does, text by text, taken up again; and how a budget is spread by it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import plain_tda
from tiny import tiny
from transformers import DynamicCache

from tda_demo.calibration import sensitivity as module
from tda_demo.calibration.priors import kept_prior, measure_prior, prior_of
from tda_demo.calibration.sensitivity import (
    PROBE_CETT,
    Sensitivity,
    allocate,
    kept_sensitivity,
    sensitivity,
    share_at,
    uniform,
)
from tda_demo.calibration.sources import ANSWERS, PASSAGES, Source
from tda_demo.calibration.thresholds import TARGETS, threshold_table
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import CoreInfer
from tda_demo.methods.tda import with_cett_by_layer
from tda_demo.model.hooks import observe
from tda_demo.model.loading import LoadedModel
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress

pytestmark = pytest.mark.usefixtures("little_text")


class CutOffError(Exception):
    pass


@pytest.fixture(autouse=True)
def short_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPT_TOKENS", 16)
    monkeypatch.setattr(module, "SCORE_TOKENS", 9)


@pytest.mark.parametrize("source", [ANSWERS, PASSAGES], ids=lambda source: source.name)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
@torch.inference_mode()
def test_it_is_that_of_a_layer_alone_as_transformers_computes_it(family: str, weighted: bool, source: Source) -> None:
    """Every text by itself: the dropped neurons' columns of down are zeroed in one layer, log-softmax in float64."""
    lm = tiny(family)
    limits = threshold_table(lm, weighted=weighted, source=source).at(PROBE_CETT)
    kl, kept, tokens = np.zeros(3), np.zeros(3), 0
    texts = source.texts(lm).texts
    for text in texts:
        begin = text.begin or 16
        ids = torch.tensor([text.ids[: begin + 9]])
        seen: list[np.ndarray] = []
        with observe(lm.blocks, lambda _block, a, seen=seen: seen.append(a.double().numpy())):
            lm.model(input_ids=ids[:, :begin])
        p = log_softmax(lm.model(input_ids=ids).logits[0, begin - 1 : -1])
        tokens += len(p)
        for block, a in zip(lm.blocks, seen, strict=True):
            down = block.down.weight
            scores = np.sqrt((a**2 / (a**2).sum(axis=1, keepdims=True)).mean(axis=0))
            scores *= np.linalg.norm(down.double().numpy(), axis=0) if weighted else 1
            dropped = torch.from_numpy(scores < limits[block.layer])
            kept[block.layer] += 1 - float(dropped.double().mean())
            cache = DynamicCache()
            lm.model(input_ids=ids[:, : begin - 1], past_key_values=cache, use_cache=True)
            whole = down.clone()
            down[:, dropped] = 0
            q = log_softmax(lm.model(input_ids=ids[:, begin - 1 : -1], past_key_values=cache).logits[0])
            down.copy_(whole)
            kl[block.layer] += (np.exp(p) * (p - q)).sum()
    found = sensitivity(lm, source, weighted=weighted)
    assert (found.texts, found.tokens) == (len(texts), tokens)
    assert found.kl == pytest.approx(kl / tokens, rel=1e-3)
    at = TARGETS.index(PROBE_CETT)
    assert [row[at] for row in found.kept] == pytest.approx(kept / len(texts), abs=1e-4)


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    return logits.double().log_softmax(dim=-1).numpy()


def test_it_is_what_the_judge_finds_of_tda_in_that_layer_alone(lm: LoadedModel) -> None:
    found = sensitivity(lm, ANSWERS)
    for layer in range(3):
        others = tuple(other for other in range(3) if other != layer)
        policy = plain_tda(PROBE_CETT, "uniform", exempt=others).bind(lm)
        kl, tokens = 0.0, 0
        for text in ANSWERS.texts(lm).texts:
            ((score,),) = score_texts(lm, [policy], torch.tensor([text.ids[: text.begin + 9]]), text.begin)
            kl, tokens = kl + score.kl, tokens + score.tokens
        assert found.kl[layer] == pytest.approx(kl / tokens, rel=1e-4)


@pytest.mark.parametrize("texts", [1, 3])
def test_measuring_that_is_cut_off_goes_on_where_it_was(lm: LoadedModel, own_cache: Path, texts: int) -> None:
    kept = kept_sensitivity(lm, False, ANSWERS)
    begun: list[int] = []

    def report(progress: Progress, most: float = 9) -> None:
        if progress.stage == "Measuring the layers":
            if progress.done >= most:
                raise CutOffError
            begun.append(progress.done)

    with pytest.raises(CutOffError):
        sensitivity(lm, ANSWERS, report=lambda progress: report(progress, texts))
    part = kept.unfinished(ANSWERS.version()).find()
    assert part is not None and part.texts == texts and not kept.path.exists()
    found = sensitivity(lm, ANSWERS, report=report)
    assert begun == [0, 1, 2, 3] and found.texts == 4
    assert kept.path.exists() and not kept.unfinished(ANSWERS.version()).path.exists()
    kept.path.unlink()
    again = sensitivity(lm, ANSWERS)
    assert again.kl == pytest.approx(found.kl, rel=1e-4)  # a part is held with five digits
    assert np.array(again.kept) == pytest.approx(np.array(found.kept), rel=1e-3)
    assert sensitivity(lm, ANSWERS, most=2).texts == 2  # fewer texts are another table
    assert kept.find() == kept.parse(json.loads(kept.text(again)))


def test_texts_too_short_are_an_error_that_says_so(lm: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROMPT_TOKENS", 96)
    with pytest.raises(UserError, match="fewer than 96 tokens"):
        module.measure_sensitivity(lm, PASSAGES, kept_sensitivity(lm, False, PASSAGES, 1))


def planted(kl: tuple[float, ...], kept: np.ndarray) -> Sensitivity:
    return Sensitivity(kl, tuple(map(tuple, kept.tolist())), 1, 1)


def test_allocation_keeps_the_share_and_spares_the_layer_that_costs_most() -> None:
    kept = np.tile(1 - np.array(TARGETS), (3, 1))
    found = planted((9.0, 1.0, 1.0), kept)
    cett = allocate(found, 0.7)
    assert (1 - cett).mean() == pytest.approx(0.7, abs=0.02)
    # At the optimum of sum k c^2 under a fixed sum of c, k c is the same everywhere.
    assert cett[1] == cett[2] == pytest.approx(9 * cett[0], rel=0.2)
    even = dataclasses.replace(found, kl=(1.0,) * 3)
    assert uniform(even, 0.7) == pytest.approx(0.3) and np.ptp(allocate(even, 0.7)) <= 0.02
    assert share_at(even, 0.3) == pytest.approx(0.7)
    with pytest.raises(UserError, match=r"share of 0\.1 .* from 0\.30 to 1"):
        allocate(found, 0.1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(1e-3, 10), st.floats(0.3, 3)), min_size=2, max_size=4), st.sampled_from(TARGETS))
def test_no_other_choice_that_keeps_as_few_is_cheaper(layers: list[tuple[float, float]], cett: float) -> None:
    """Against many drawn by lot, and the neighbours of the choice."""
    targets, (kl, bends) = np.array(TARGETS), np.array(layers).T
    kept = (1 - targets) ** bends[:, None]
    measured = planted(tuple(kl), kept)
    share = share_at(measured, cett)
    at = np.rint(100 * allocate(measured, share)).astype(int)
    random = np.random.default_rng(0)
    lot = random.integers(0, len(TARGETS), (5000, len(kl)))
    others = np.concatenate([at[None], lot, at + random.integers(-2, 3, lot.shape)]).clip(0, len(TARGETS) - 1)
    costs = (kl * (targets[others] / PROBE_CETT) ** 2).sum(axis=1)
    means = kept[np.arange(len(kl)), others].mean(axis=1)
    assert means[0] <= share + 1e-9
    assert costs[means <= means[0] + 1e-12].min() >= costs[0] - 1e-6 * costs[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_tda_keeps_as_much_by_sensitivity_as_by_one_cett_and_can_be_written_as_factors(family: str) -> None:
    lm = tiny(family)
    measured, table = sensitivity(lm, ANSWERS), threshold_table(lm, weighted=False, source=ANSWERS)
    shaped: Any = plain_tda(cett=0.3).bind(lm)
    cett = allocate(measured, share_at(measured, 0.3))
    expected = [np.interp(each, TARGETS, row) for each, row in zip(cett, table.thresholds, strict=True)]
    assert shaped.limits == pytest.approx(expected)
    method = with_cett_by_layer(lm, cett)
    assert method.shape == "uniform" and method.cett == PROBE_CETT
    written: Any = method.bind(lm)
    assert written.limits == pytest.approx(expected)
    method = with_cett_by_layer(lm, np.array([0.1, 0.25, 0.0]))
    assert method.scale[1] == pytest.approx(1) and method.scale[2] == 0
    flat: Any = plain_tda(cett=0.3, shape="uniform", scale=(1, 0.5, 2), exempt=(0,)).bind(lm)
    assert flat.limits == pytest.approx(table.at(0.3) * [0, 0.5, 2])


@pytest.mark.parametrize("source", [ANSWERS, PASSAGES], ids=lambda source: source.name)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_a_prior_is_the_mean_evidence_of_the_tokens_that_count(family: str, source: Source) -> None:
    lm, method = tiny(family), CoreInfer(prior=3)
    policy: Any = method.bind(lm, source=source)
    votes, tokens = [np.zeros(70) for _ in lm.blocks], 0
    for text in source.texts(lm).texts:
        seen: list[np.ndarray] = []
        with observe(lm.blocks, lambda _block, a, seen=seen: seen.append(a.abs().double().numpy())):
            lm.model(input_ids=torch.tensor([text.ids]))
        tokens += len(text.ids) - text.begin
        for layer, a in enumerate(seen):
            for token in a[text.begin :]:
                best = np.argsort(-token, kind="stable")[:14]
                votes[layer][best[token[best] > 0]] += 1
    for layer, own in enumerate(votes):
        assert policy.priors[layer].numpy() == pytest.approx(own / tokens, rel=1e-3)
    assert kept_prior(lm, "votes-0.2", source).path.exists() and policy.prior_tokens == 3
    measured = measure_prior(lm, "strength", policy.evidence, source)
    again = prior_of(lm, "votes-0.2", policy.evidence, source)
    for here, there in zip(measured, again, strict=True):
        assert here.astype(np.float32).tolist() == there.tolist()  # measured now or read from the file
