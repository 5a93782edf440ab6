"""Sets that are chosen late or anew: pieces of several tokens, texts that end before, races, exact settings."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from evidence import TOKENS, by_hand, neuron_bytes
from plain import plain_tda
from tiny import PROMPT, tiny
from transformers import DynamicCache

from tda_demo.decode.choose import step_bytes
from tda_demo.evaluate.result import quality
from tda_demo.evaluate.scoring import score_texts
from tda_demo.methods import GRIFFIN, TDA, Magnitude, Prior, Random
from tda_demo.methods.sequence import Evidence
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, PromptRead, RaceSettings, race

pytestmark = pytest.mark.usefixtures("little_text")

EVERY = 3
METHOD = plain_tda(cett=0.4, online=True, refresh=EVERY)
FIRST: dict[str, Any] = {
    "tda": plain_tda(cett=0.4, online=True),
    "tda refreshed": plain_tda(cett=0.4, online=True, refresh=2),
    "griffin": GRIFFIN(keep=0.4),
    "random": Random(keep=0.4),
    "magnitude": Magnitude(keep=0.4),
    "prior": Prior(keep=0.4),
}


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


def test_never_refreshing_and_refreshing_nothing(lm: LoadedModel) -> None:
    text = torch.tensor([[*lm.prompt_ids(PROMPT), *TOKENS]])
    choosers = [
        plain_tda(0.4, online=True).bind(lm),
        plain_tda(0.4, online=True, refresh=99).bind(lm),
        TDA(0, refresh=2).bind(lm),
    ]
    ((never,), (late,), (exact,)) = score_texts(lm, choosers, text, 12)
    assert (never.kl, never.kept, never.sparse_loss) == (late.kl, late.kept, late.sparse_loss)  # nothing was due yet
    assert never.cett == pytest.approx(late.cett) and never.recall == pytest.approx(late.recall)
    assert exact.copied == late.copied == ((0, 0),) * 3 and never.copied == ()  # sets that are everything need no copy
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


def test_a_dense_step_stands_for_the_tokens_since_the_last(lm: LoadedModel) -> None:
    prompt, token = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    policy: Any = TDA(cett=0).bind(lm)
    policy.limits[:] = 0.7
    evidence = Evidence.of(policy, lm.blocks[0], prompt)
    assert evidence.active().tolist() == [False, False]  # the roots of 0.18 and 0.32
    evidence = evidence.more(2 * policy.evidence(lm.blocks[0], token), 2)
    assert evidence.tokens == 4
    assert evidence.sums.tolist() == pytest.approx([0.36, 2.64])
    assert evidence.active().tolist() == [False, True]  # the roots of 0.09 and 0.66


@pytest.mark.parametrize("name", FIRST)
def test_first_tokens_beyond_the_end_of_a_text_leave_it_dense(lm: LoadedModel, name: str) -> None:
    """In a race as in a score: nothing is chosen, nothing copied, and what is read is what a dense step reads."""
    method = dataclasses.replace(FIRST[name], first=99)
    policy = method.bind(lm)
    text = torch.tensor([[*lm.prompt_ids(PROMPT), *TOKENS], [*range(20, 32), *TOKENS]])
    (scores,) = score_texts(lm, [policy], text, 12)
    for found in scores:
        assert (found.kl, found.sparse_loss, found.kept) == (0, found.dense_loss, (70, 70, 70))
        assert set(found.cett) == {0} and set(found.recall) == {1} and set(found.copied) == {(0, 0)}
    total = quality(scores, step_bytes(lm, policy), policy)
    assert (total.byte_bound, total.mlp_share, total.step_bytes) == (1, 1, step_bytes(lm).dense)
    events = list(race(lm, method, PROMPT, RaceSettings(max_new_tokens=9)))
    (result,) = (event.result for event in events if isinstance(event, Finished))
    assert result.byte_bound == 1 and result.sparsity == [0, 0, 0]
    assert result.sparse.weight_bytes == result.dense.weight_bytes == step_bytes(lm).dense
    quality_ = result.quality
    assert quality_ is not None and quality_.kl == 0 and quality_.cett == [0, 0, 0]


@pytest.mark.parametrize("name", FIRST)
def test_a_race_counts_first_tokens_as_dense_ones(lm: LoadedModel, name: str) -> None:
    method = dataclasses.replace(FIRST[name], first=4)
    events = list(race(lm, method, PROMPT, RaceSettings(max_new_tokens=9)))
    (result,) = (event.result for event in events if isinstance(event, Finished))
    written = lm.tokenizer(result.sparse.text)["input_ids"]
    assert len(written) == result.sparse.tokens == 9
    served = by_hand(tiny(), method, written[:-1])
    assert [served.sets for served in served[:4]] == [[list(range(70))] * 3] * 4
    computed = [sum(map(len, each.sets)) for each in served]
    assert result.sparsity == pytest.approx(
        [1 - np.mean([len(each.sets[k]) for each in served]) / 70 for k in range(3)]
    )
    copied = sum(each.copied for each in served)
    read = step_bytes(lm).dense - (3 * 70 - (sum(computed) + copied) / len(served)) * neuron_bytes("llama")
    assert result.byte_bound == pytest.approx(step_bytes(lm).dense / read)
