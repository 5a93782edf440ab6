"""TDA with ``refresh``: the running score in float64, the schedule, the bytes, and evaluation as the arm decodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from tiny import PROMPT, tiny
from transformers import DynamicCache

from tda_demo.decode.choose import engine_for, step_bytes
from tda_demo.decode.eager import EagerEngine
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import judge, score_texts
from tda_demo.methods import TDA, ActiveSets
from tda_demo.methods.refresh import History
from tda_demo.model.hooks import observe
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, PromptRead, RaceSettings, race

EVERY = 3
METHOD = TDA(cett=0.4, online=True, refresh=EVERY)
TOKENS = [40, 41, 42, 50, 51, 52, 60]


def by_hand(lm: LoadedModel, tokens: list[int]) -> tuple[list[torch.Tensor], list[list[list[int]]]]:
    """Logits of every token and the sets it had, from transformers with hooks, the score summed up in float64."""
    seen: list[torch.Tensor] = []
    cache = DynamicCache(config=lm.model.config)
    prompt = torch.tensor([lm.prompt_ids(PROMPT)])
    selector: Any = TDA(cett=0.4, online=True).bind(lm)
    with observe(lm.blocks, lambda block, a: (selector.select(block, a), seen.append(a))[1]):
        lm.model(input_ids=prompt, past_key_values=cache)

    def relative(a: torch.Tensor) -> np.ndarray:
        a = a.double()
        return (a.abs() / a.norm(dim=1, keepdim=True)).square().sum(dim=0).numpy()

    sums, count = [relative(a) for a in seen], prompt.shape[1]
    logits, sets = [], []
    for index, token in enumerate(tokens, start=1):
        due = index % EVERY == 0
        # A limit found in the prompt is the score of a neuron, which is not to be lost by rounding.
        chosen = [
            np.sqrt(each / count) >= limit * (1 - 1e-6) for each, limit in zip(sums, selector.limits, strict=True)
        ]
        if due:
            chosen = [np.ones_like(each) for each in chosen]
        seen.clear()
        active = ActiveSets.of([torch.from_numpy(each) for each in chosen])
        with observe(lm.blocks, lambda _block, a: seen.append(a)), active.on(lm.blocks):
            logits.append(lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
        sets.append([np.flatnonzero(each).tolist() for each in chosen])
        if due:
            sums = [old + EVERY * relative(a) for old, a in zip(sums, seen, strict=True)]
            count += EVERY
    return logits, sets


@pytest.mark.parametrize(
    ("family", "eager"), [*((family, True) for family in FAMILIES), ("llama", False), ("opt", False), ("phi3", False)]
)
def test_every_third_step_is_dense_and_the_sets_after_it_are_those_of_float64(family: str, eager: bool) -> None:
    lm = tiny(family)
    chooser = METHOD.bind(lm)
    engine = EagerEngine(lm) if eager else engine_for(lm, chooser)
    prefill = engine.prefill(lm.prompt_ids(PROMPT), chooser)
    arm: Any = engine.sparse_arm(prefill, len(TOKENS))
    again: Any = engine.sparse_arm(prefill, len(TOKENS))
    expected, sets = by_hand(tiny(family), TOKENS)
    assert arm.weight_bytes is None and prefill.plan.settled is None
    dense: Any = engine.dense_arm(prefill, len(TOKENS)).weight_bytes
    neuron = (2 * 32 + 1 if family in ("opt", "gpt_neox") else 3 * 32) * 4
    for index, token in enumerate(TOKENS):
        logits = arm.step(token).clone()
        torch.testing.assert_close(logits, expected[index], rtol=1e-4, atol=1e-4)
        assert torch.equal(again.step(token), logits)
        counts = [len(layer) for layer in sets[index]]
        assert arm.computed() == counts == [each.shape[1] for each in arm.activations()]
        renews = index + 1 < len(TOKENS) and (index + 1) % EVERY == 0
        copied = sum(len(layer) for layer in sets[index + 1]) if renews else 0
        assert arm.weight_bytes == dense - (3 * 70 - sum(counts) - copied) * neuron
    assert sets[2] == sets[5] == [list(range(70))] * 3  # dense
    assert len({str(sets[at]) for at in (0, 3, 6)}) == 3  # and the sets did change
    judged = judge(engine, prefill, TOKENS)
    torch.testing.assert_close(judged.sparse_logits, torch.stack(expected), rtol=1e-4, atol=1e-4)
    assert min(judged.cett) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_patched_model_decodes_as_the_arm_does_and_is_restored(family: str) -> None:
    lm = tiny(family)
    expected, _ = by_hand(tiny(family), TOKENS)
    prompt = torch.tensor([lm.prompt_ids(PROMPT)])
    dense = lm.model(input_ids=prompt).logits
    with METHOD(lm):
        for _ in range(2):  # a new prompt begins anew
            cache = DynamicCache(config=lm.model.config)
            assert torch.equal(lm.model(input_ids=prompt, past_key_values=cache).logits, dense)
            for token, logits in zip(TOKENS, expected, strict=True):
                found = lm.model(input_ids=torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
                torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(lm.model(input_ids=prompt).logits, dense)


def test_a_patched_model_takes_embeddings_and_several_tokens_at_once(lm: LoadedModel) -> None:
    prompt = torch.tensor([lm.prompt_ids(PROMPT)])
    embed = lm.model.get_input_embeddings()

    def feed(*pieces: list[int], embedded: bool = False) -> torch.Tensor:
        """Logits [1, tokens, vocabulary] of all pieces after the prompt, each fed at once."""
        cache, logits = DynamicCache(config=lm.model.config), []
        for ids in (prompt, *(torch.tensor([piece]) for piece in pieces)):
            given = {"inputs_embeds": embed(ids)} if embedded else {"input_ids": ids}
            logits.append(lm.model(**given, past_key_values=cache).logits)
        return torch.cat(logits[1:], dim=1)

    pieces = (TOKENS[:2], TOKENS[2:3], TOKENS[3:])
    with METHOD(lm):
        by_ids, by_embeddings = feed(*pieces), feed(*pieces, embedded=True)
        one_by_one = feed(*([token] for token in TOKENS[:3]))
        at_once = feed(TOKENS[:3])
    torch.testing.assert_close(by_ids, by_embeddings)
    torch.testing.assert_close(by_ids[:, :3], one_by_one)
    # What reaches beyond the two sparse tokens runs dense in one piece.
    torch.testing.assert_close(at_once, feed(TOKENS[:3]))


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_evaluation_refreshes_text_by_text_as_the_arm_does(family: str) -> None:
    lm = tiny(family)
    prompt = lm.prompt_ids(PROMPT)
    other = [7, 8, 9, *prompt[3:]]
    texts = [[*ids, *TOKENS] for ids in (prompt, other)]
    chooser = METHOD.bind(lm)
    (scores,) = score_texts(lm, [chooser], torch.tensor(texts), len(prompt))
    for text, found in zip(texts, scores, strict=True):
        engine = EagerEngine(lm)
        # The prompt's last token runs again with the scored ones, so the arm begins one earlier; the sets are of all.
        whole, shorter = (engine.prefill(text[: len(prompt) - cut], chooser) for cut in (0, 1))
        arm: Any = engine.sparse_arm(type(whole)(**{**vars(whole), "cache": shorter.cache}), len(TOKENS))
        loss, kept, read = 0.0, [], []
        for fed, target in zip(text[len(prompt) - 1 :], text[len(prompt) :], strict=False):
            loss -= float(arm.step(fed).log_softmax(dim=0)[target])
            kept.append(arm.computed())
            read.append(arm.weight_bytes)
        assert found.sparse_loss == pytest.approx(loss, rel=1e-4)
        assert found.kept == pytest.approx(np.mean(kept, axis=0))
        assert min(found.cett) > 0 and max(found.recall) < 1
        alone = quality([found], step_bytes(lm, chooser), chooser)
        assert alone.step_bytes == pytest.approx(np.mean(read)) and min(found.copied) > 0
        assert alone.mlp_share == pytest.approx(1 - np.mean(alone.sparsity) + sum(found.copied) / (3 * 70))


def test_never_refreshing_and_refreshing_nothing(lm: LoadedModel) -> None:
    text = torch.tensor([[*lm.prompt_ids(PROMPT), *TOKENS]])
    choosers = [TDA(0.4, online=True).bind(lm), TDA(0.4, online=True, refresh=99).bind(lm), TDA(0, refresh=2).bind(lm)]
    ((never,), (late,), (exact,)) = score_texts(lm, choosers, text, 12)
    assert (never.kl, never.kept, never.sparse_loss) == (late.kl, late.kept, late.sparse_loss)  # nothing was due yet
    assert never.cett == pytest.approx(late.cett) and never.recall == pytest.approx(late.recall)
    assert exact.copied == late.copied == (0, 0, 0) and never.copied == ()  # sets that are everything need no copy
    assert exact.kl == 0 and exact.kept == (70, 70, 70) and exact.sparse_loss == exact.dense_loss


def test_a_race_counts_the_dense_steps_and_the_copies(lm: LoadedModel) -> None:
    events = list(race(lm, METHOD, PROMPT, RaceSettings(max_new_tokens=9)))
    (read,) = (event for event in events if isinstance(event, PromptRead))
    (result,) = (event.result for event in events if isinstance(event, Finished))
    assert read.active is None and read.byte_bound is None
    steps = [event for event in events if getattr(event, "fired", None) is not None and event is not read]
    fired = np.array([step.fired for step in steps])
    assert (fired[EVERY - 1 :: EVERY] == 70).all() and (fired[0] < 70).any()
    assert result.sparsity == pytest.approx((1 - fired.mean(axis=0) / 70).tolist())
    copied = fired[EVERY::EVERY].sum() / len(fired)  # every set but the prompt's
    computed = fired.sum(axis=1).mean() + copied
    dense = result.dense.weight_bytes or 0
    assert result.byte_bound == pytest.approx(dense / (dense - (3 * 70 - computed) * 3 * 32 * 4))


def test_a_dense_step_stands_for_the_tokens_since_the_last() -> None:
    prompt, token = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    history = History.of(0.7, None, prompt).with_token(token, 2)
    assert history.tokens == 4
    assert history.squares.tolist() == pytest.approx([0.36, 2.64])
    assert history.active().tolist() == [False, True]  # the roots of 0.09 and 0.66
