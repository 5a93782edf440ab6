"""Prior, prompt, first tokens and refresh as one sum: the sets against float64, in arms, patched models and scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from evidence import TOKENS, WIDTH, Served, bound, by_hand, neuron_bytes, plant_priors
from families import FAMILIES
from plain import plain_tda
from tiny import PROMPT, tiny
from transformers import DynamicCache

from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.eager import EagerEngine
from tda_demo.evaluate.judge import Judge
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import GRIFFIN, METHODS, CoreInfer, Magnitude, Method, Prior, Random
from tda_demo.methods.base import EvidenceMethod, SequenceMethod
from tda_demo.model.hooks import observe
from tda_demo.model.loading import LoadedModel

pytestmark = pytest.mark.usefixtures("little_text")

BLENDS: dict[str, Any] = {
    "tda": plain_tda(cett=0.4, shape="uniform", prior=5, first=2, refresh=3),
    "tda shaped": plain_tda(cett=0.4, prior=3, first=2),
    "tda weighted": plain_tda(cett=0.4, shape="uniform", weighted=True, prior=4.5, refresh=2),
    "tda online": plain_tda(cett=0.4, online=True, prior=7, first=1, refresh=3),
    "griffin": GRIFFIN(keep=0.4, prior=6, first=3, refresh=2),
    "griffin at every step": GRIFFIN(keep=0.4, prior=6, refresh=1),
    "coreinfer": CoreInfer(0.4, 0.2, 1, 0, prior=3.7, first=2, refresh=4),
    "random": Random(keep=0.4, first=2),
    "magnitude": Magnitude(keep=0.4, first=3),
    "prior": Prior(keep=0.4, first=1),
}


def kinds(contract: type[Method]) -> set[str]:
    return {name for name, kind in METHODS.items() if issubclass(kind, contract)}


def test_every_sequence_level_method_is_here() -> None:
    assert {method.name for method in BLENDS.values()} == kinds(SequenceMethod)
    assert {method.name for method in BLENDS.values() if hasattr(method, "prior")} == kinds(EvidenceMethod)


@pytest.mark.parametrize(
    ("family", "eager"), [*((family, True) for family in FAMILIES), ("llama", False), ("opt", False)]
)
@pytest.mark.parametrize("name", BLENDS)
def test_an_arm_computes_the_sets_of_float64_and_counts_what_it_reads(name: str, family: str, eager: bool) -> None:
    lm, method = tiny(family), BLENDS[name]
    expected = by_hand(tiny(family), method, TOKENS)
    policy = bound(lm, method)
    engine = EagerEngine(lm) if eager else engine_for(lm, policy)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), policy)
    arm: Any = engine.sparse_arm(prefill, len(TOKENS))
    dense: Any = engine.dense_arm(prefill, 1).weight_bytes
    for token, served in zip(TOKENS, expected, strict=True):
        torch.testing.assert_close(arm.step(token), served.logits, rtol=1e-4, atol=1e-4)
        counts = [len(layer) for layer in served.sets]
        assert arm.computed() == counts == [each.shape[1] for each in arm.activations()]
        assert arm.weight_bytes == dense - (3 * WIDTH - sum(counts) - served.copied) * neuron_bytes(family)
    first = method.first
    assert all(served.sets == [list(range(WIDTH))] * 3 for served in expected[:first])
    if method != BLENDS["griffin at every step"]:
        assert 0 < sum(map(len, expected[first].sets)) < 3 * WIDTH
    judged = Judge(engine, [prefill]).read(TOKENS)[0]
    assert_all_close(judged.sparse_logits, expected)


def assert_all_close(logits: torch.Tensor, expected: list[Served]) -> None:
    torch.testing.assert_close(logits, torch.stack([each.logits for each in expected]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma2"])
@pytest.mark.parametrize("name", BLENDS)
def test_the_patched_model_decodes_the_same_and_is_restored(name: str, family: str) -> None:
    lm, method = tiny(family), BLENDS[name]
    expected = by_hand(tiny(family), method, TOKENS)
    prompt = torch.tensor([lm.prompt_ids(PROMPT)])
    dense = lm.model(input_ids=prompt).logits
    with method(lm):
        for _ in range(2):  # a new prompt begins anew
            cache = DynamicCache(config=lm.model.config)
            assert torch.equal(lm.model(input_ids=prompt, past_key_values=cache).logits, dense)
            steps = [
                lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, 0] for token in TOKENS
            ]
            assert_all_close(torch.stack(steps), expected)
    assert torch.equal(lm.model(input_ids=prompt).logits, dense)


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("name", BLENDS)
def test_evaluation_scores_texts_at_once_as_an_arm_decodes_each(name: str, family: str) -> None:
    lm, method = tiny(family), BLENDS[name]
    prompt = lm.prompt_ids(PROMPT)
    texts = [[*ids, *TOKENS] for ids in (prompt, [7, 8, 9, *prompt[3:]], [77, *prompt[1:]])]
    policy = bound(lm, method)
    (scores,) = score_texts(lm, [policy], torch.tensor(texts), len(prompt))
    for text, found in zip(texts, scores, strict=True):
        engine = EagerEngine(lm)
        # The prompt's last token runs again with the scored ones, so the arm begins one earlier; the sets are of all.
        whole, shorter = (engine.prefill(text[: len(prompt) - cut], policy) for cut in (0, 1))
        arm: Any = engine.sparse_arm(dataclasses.replace(whole, cache=shorter.cache), len(TOKENS))
        loss, kept, read = 0.0, [], []
        for fed, target in zip(text[len(prompt) - 1 :], text[len(prompt) :], strict=False):
            loss -= float(arm.step(fed).log_softmax(dim=0)[target])
            kept.append(arm.computed())
            read.append(arm.weight_bytes)
        assert found.sparse_loss == pytest.approx(loss, rel=1e-4)
        assert found.kept == pytest.approx(np.mean(kept, axis=0))
        assert quality([found], step_bytes(lm, policy), policy).step_bytes == pytest.approx(np.mean(read))


@pytest.mark.parametrize("weight", [0.5, 12, 1e9])
@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_limits_found_in_the_prompt_go_by_the_blended_score(family: str, weight: float) -> None:
    """Neurons are dropped from the lowest blend on while the prompt's mean error stays within the target."""
    lm, method = tiny(family), plain_tda(cett=0.3, online=True, prior=weight)
    prior = plant_priors(lm, method)
    active = engine_for(lm).prefill(lm.prompt_ids(PROMPT), method.bind(lm)).active
    seen: list[np.ndarray] = []
    with observe(lm.blocks, lambda _block, a: seen.append(a.double().numpy())):
        lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]))
    for block, a, known, found in zip(lm.blocks, seen, prior, active.indices, strict=True):
        relative = (a**2 / (a**2).sum(axis=1, keepdims=True)).sum(axis=0)
        order = np.argsort((relative + weight * known) / (len(a) + weight))
        down = block.down.weight.double().numpy()
        whole = np.linalg.norm(a @ down.T, axis=1)
        errors = [
            (np.linalg.norm(a[:, order[:k]] @ down[:, order[:k]].T, axis=1) / whole).mean() for k in range(WIDTH + 1)
        ]
        most = next(k for k, error in enumerate(errors) if error > 0.3) - 1
        assert found.tolist() == sorted(order[most:].tolist())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prior_that_outweighs_the_prompt_is_the_control_and_one_of_no_weight_is_none(family: str) -> None:
    lm = tiny(family)
    plant_priors(lm, GRIFFIN())
    own, light, heavy, control = (
        [each.tolist() for each in engine_for(lm).prefill(lm.prompt_ids(PROMPT), each.bind(lm)).active.indices]
        for each in (GRIFFIN(), GRIFFIN(prior=1e-9), GRIFFIN(prior=1e12), Prior(keep=0.5))
    )
    assert own == light != heavy == control


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("weighted", [False, True])
def test_without_what_is_ours_the_sets_are_the_papers_bit_for_bit(family: str, weighted: bool) -> None:
    check_papers_sets(tiny(family), weighted)


def check_papers_sets(lm: LoadedModel, weighted: bool) -> None:
    """The formula as it stood, in torch: a mean of squares over the prompt, its root against the limit."""
    for cett in (0.05, 0.2, 0.45, 0.7):
        policy: Any = plain_tda(cett, "uniform", weighted=weighted, prior=0, first=0, refresh=0, rest="skip").bind(lm)
        found = engine_for(lm, policy).prefill(lm.prompt_ids(PROMPT), policy).active
        seen: list[torch.Tensor] = []
        with observe(lm.blocks, lambda _block, a, seen=seen: seen.append(a)), torch.inference_mode():
            lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]))
        for block, a, mask in zip(lm.blocks, seen, found.masks, strict=True):
            magnitude = a.float().abs()
            strength = magnitude / magnitude.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            if weighted:
                strength = strength * block.output_norms
            expected = strength.square().mean(dim=0).sqrt() >= policy.limits[block.layer]
            assert torch.equal(mask[0], expected)


def test_so_are_the_embedded_models(embedded: LoadedModel) -> None:
    check_papers_sets(embedded, weighted=False)
