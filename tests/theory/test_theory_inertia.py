"""Claim 3: models whose answer is known, and verdicts against planted overlaps."""

from __future__ import annotations

import dataclasses
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from tiny import tiny

from tda_demo.methods import TDA
from tda_demo.model.loading import LoadedModel
from tda_demo.stats.estimates import regression
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress
from tda_demo.theory.gradients import signals
from tda_demo.theory.inertia import Inertia
from tda_demo.theory.inertia.probes import Drift, Neighbours, Swap, drift_positions, echo, neighbours, ranges, swap
from tda_demo.theory.inertia.verdict import Measurements, conclude
from tda_demo.theory.reading import Reader, Stopped, active, importance, whole_words

TEXTS = [" ".join(f"w{3 + (start * 5 + step * (start + 2)) % 90}" for step in range(24)) for start in range(12)]
SMALL = Inertia(sequences=8, length=16, prompts=4, tokens=20)
GO = threading.Event()
pytestmark = pytest.mark.usefixtures("little_text")  # the prior is measured on it


def rows(count: int, tokens: int, seed: int = 0) -> torch.Tensor:
    ids = torch.randint(3, 97, (count, tokens), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 1
    return ids


def without_memory() -> LoadedModel:
    """A model whose attention writes nothing: every token stands for itself."""
    lm = tiny()
    for name, parameter in lm.model.named_parameters():
        if name.endswith("o_proj.weight"):
            parameter.zero_()
    return lm


def without_meaning() -> LoadedModel:
    """A model to which all tokens are one."""
    lm = tiny()
    table = lm.model.get_input_embeddings().weight
    table[:] = table[3]
    return lm


def test_a_model_without_memory_follows_the_token_alone() -> None:
    reader = Reader(without_memory())
    found = swap(reader, rows(8, 12), 0.3, GO, lambda _: None)
    assert found is not None and found.overlap.shape == (4, 3, 3)
    np.testing.assert_array_equal(found.overlap[:, 1], 1)
    np.testing.assert_array_equal(found.overlap[:, 0], found.overlap[:, 2])
    assert found.overlap[:, 0].max() < 0.9
    (check,) = conclude(Measurements(4, natural_swap=found), "planted", Inertia()).checks
    assert (check.outcome, check.opposite) == ("contradicted", 3)
    changed = echo(reader, rows(8, 12), rows(2, 9)[:, 1:], 4, 0.3, GO, lambda _: None)
    assert changed is not None and changed.shape == (8, 2, 8, 3)
    np.testing.assert_array_equal(changed, 0)


def test_a_model_without_meaning_shows_no_effect() -> None:
    """Every set equals every other: neither prefix nor token decides anything, and nothing echoes."""
    reader = Reader(without_meaning())
    natural, noise = rows(8, 12), rows(8, 12, seed=1)
    found = swap(reader, natural, 0.3, GO, lambda _: None)
    nearby = neighbours(reader, natural, noise, 0.3, GO, lambda _: None)
    checks = conclude(Measurements(4, natural_swap=found, neighbours=nearby), "planted", Inertia()).checks
    assert [check.outcome for check in checks] == ["no effect"] * 3


def test_an_insertion_echoes_in_a_model_with_memory(lm: LoadedModel) -> None:
    changed = echo(Reader(lm), rows(8, 12), rows(2, 9)[:, 1:], 4, 0.3, GO, lambda _: None)
    assert changed is not None and (changed.mean(axis=(0, 1)) > 0).all()


@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "gpt_neox"])
def test_parallel_and_one_by_one_are_one_computation(family: str) -> None:
    found = neighbours(Reader(tiny(family)), rows(3, 20), rows(3, 20, seed=1), 0.3, GO, lambda _: None)
    assert found is not None and found.sets.shape == (3, 2, 2, 3) and found.apart.shape == (3, 2, 3)
    assert found.difference.max() < 1e-4 and found.changed.max() < 0.01
    np.testing.assert_allclose(found.cosine[:, :, 0], found.cosine[:, :, 1], atol=1e-4)


class Spelling:
    """A tokenizer that spells tokens as ``tokens`` does."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = tokens

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.tokens[each] for each in ids]


def test_a_word_is_a_token_that_neither_goes_on_nor_ends_another() -> None:
    spelling = Spelling("ĠThe", "Ġquiet", "Ġlight", "house", "Ġstood", ",", "Ġ1234", "▁waves", "oran")
    lm = dataclasses.replace(tiny(), tokenizer=spelling)  # type: ignore[arg-type]
    found = whole_words(lm, torch.arange(9)[None])
    assert found.tolist() == [[False, True, False, False, True, False, False, False, False]]
    assert whole_words(lm, torch.tensor([[7]])).tolist() == [[True]]


def test_swap_against_reading_the_endings_one_at_a_time(lm: LoadedModel) -> None:
    ids = rows(2, 11)
    ids[1, 10] = ids[0, 10]  # equal last tokens: the ones before them are swapped instead
    found = swap(Reader(lm), ids, 0.3, GO, lambda _: None)
    assert found is not None

    def members(prefix: torch.Tensor, token: torch.Tensor, layer: int) -> set[int]:
        a = Reader(lm).read(torch.cat([prefix, token[None]])[None], last=1).activations[layer]
        return set(active(importance(lm.blocks[layer], a[0, 0]), 0.3).nonzero().flatten().tolist())

    for layer in range(3):
        expected = []
        for length in (5, 10):
            p, q = ids[0, :length], ids[1, :length]
            last = max(place for place in range(1, length + 1) if ids[0, place] != ids[1, place])
            v, w = ids[0, last], ids[1, last]
            pv, pw, qv, qw = (members(*each, layer) for each in ((p, v), (p, w), (q, v), (q, w)))
            pairs = ((pv, pw), (qv, qw), (pv, qv), (pw, qw), (pv, qw), (pw, qv))
            expected += [len(a & b) / len(a | b) for a, b in pairs]
        np.testing.assert_allclose(found.responses[0, :, layer], expected)


def planted_swap(prefix: float, token: float, seed: int = 0) -> Swap:
    """Overlaps of 0.2, and so much more where the prefix or the token is shared."""
    random = np.random.default_rng(seed)
    alike = random.uniform(-0.1, 0.1, size=16)
    shared = np.array([1.0, 1, 0, 0, 0, 0])
    same = np.array([0.0, 0, 1, 1, 0, 0])
    meaning = np.where(same > 0, 1.0, alike[:, None])
    responses = (
        0.2 + prefix * shared[:, None] + token * meaning[:, :, None] + random.normal(scale=0.03, size=(16, 6, 30))
    )
    predictors = np.stack([np.broadcast_to(shared, (16, 6)), meaning], axis=2)
    return Swap(responses.reshape(16, 3, 2, 30).mean(axis=2), responses, predictors)


@pytest.mark.parametrize(
    ("prefix", "token", "outcome"),
    [(0.3, 0.1, "supported"), (0.1, 0.3, "contradicted"), (0.0, 0.0, "no effect")],
)
def test_verdict_and_regression_on_planted_overlaps(prefix: float, token: float, outcome: str) -> None:
    planted = planted_swap(prefix, token)
    finding = conclude(Measurements(4, natural_swap=planted), "planted", Inertia())
    assert finding.checks[0].outcome == outcome
    _, by_prefix, by_meaning = regression(list(planted.responses.mean(axis=2)), list(planted.predictors))
    assert by_prefix.low <= prefix <= by_prefix.high and by_meaning.low <= token <= by_meaning.high
    table = finding.tables[1].columns
    assert np.mean(table["prefix"]) == pytest.approx(prefix, abs=0.02)
    assert np.mean(table["meaning"]) == pytest.approx(token, abs=0.02)


@pytest.mark.parametrize(("lead", "outcome"), [(0.05, "supported"), (0.0, "no effect"), (-0.05, "contradicted")])
def test_verdict_on_planted_neighbours_and_drift(lead: float, outcome: str) -> None:
    random = np.random.default_rng(3)

    def around(value: float, *shape: int) -> np.ndarray:
        return value + random.normal(scale=0.02, size=shape)

    nearby = Neighbours(
        cosine=around(0.3, 16, 2, 2, 30),
        sets=around(0.3 + lead, 16, 2, 2, 30),
        apart=around(0.3, 16, 2, 30),
        difference=np.full((16, 2, 30), 1e-6),
        changed=np.zeros((16, 2, 30)),
    )
    looked_at = drift_positions(512)
    others = [around(0.4, 6, len(looked_at), 30) for _ in range(2)]
    drifted = Drift(looked_at, around(0.4 + lead, 6, len(looked_at), 30), *others)
    checks = conclude(Measurements(4, neighbours=nearby, drift=drifted), "planted", Inertia()).checks
    assert [check.outcome for check in checks] == [outcome] * 4
    assert [len(check.estimates) for check in checks] == [30, 30, 10, 10]


def test_ranges_double_and_places_fill_them() -> None:
    assert [(span.start, span.stop) for span in ranges(10)] == [(0, 1), (1, 2), (2, 4), (4, 8), (8, 10)]
    assert ranges(1) == [range(0, 1)] and len(ranges(512)) == 10
    looked_at = drift_positions(512)
    assert len(set(looked_at)) == len(looked_at) and looked_at[-1] == 511
    assert all(1 <= sum(place in span for place in looked_at) <= 16 for span in ranges(512))


def test_it_measures_a_model_and_repeats(lm: LoadedModel) -> None:
    told: list[Progress] = []
    finding = SMALL.run(lm, TEXTS, told.append)
    assert finding.complete and len(finding.checks) == 6
    assert told[-1].done == told[-1].total and all(a.done <= b.done for a, b in pairwise(told))
    assert finding.tables[-2].columns["up to token"] == [1, 2, 4, 8, 16, 20]
    assert SMALL.run(lm, TEXTS) == finding
    assert dataclasses.replace(SMALL, seed=1).run(lm, TEXTS) != finding


def test_stop_leaves_the_model_as_it_was(lm: LoadedModel) -> None:
    ids = torch.tensor([[5, 6, 7]])
    before = lm.model(input_ids=ids).logits
    # After the first swap, while the grid is fed one by one, in the echo, at the fourth prompt.
    for at, checks in ((152, 1), (772, 2), (872, 4), (1_277, 4)):
        stop = threading.Event()
        finding = SMALL.run(lm, TEXTS, lambda p, at=at, stop=stop: p.done >= at and stop.set(), stop)
        assert not finding.complete and len(finding.checks) == checks
    stop.set()
    assert SMALL.run(lm, TEXTS, stop=stop).checks == ()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    assert torch.equal(lm.model(input_ids=ids).logits, before)
    with TDA(cett=0)(lm):
        assert torch.equal(lm.model(input_ids=ids).logits, before)


def test_a_reading_breaks_off_between_layers(lm: LoadedModel) -> None:
    stop = threading.Event()
    reader, seen = Reader(lm, stop), []

    def after_the_first(_module: object, _inputs: object) -> None:
        seen.append(stop.set())

    reader.blocks[0].up.linear.register_forward_pre_hook(after_the_first)
    for call in (lambda: reader.read(rows(2, 6)), lambda: signals(reader.model, rows(1, 6), stop)):
        with pytest.raises(Stopped):
            call()
        assert len(seen) == 1  # the second layer was not reached, nor the backward pass
        seen.clear()
        stop.clear()
        assert not any(module._forward_hooks for module in reader.model.modules())
        assert sum(len(module._forward_pre_hooks) for module in reader.model.modules()) == 1


@pytest.mark.parametrize(
    "wrong",
    [{"sequences": 6}, {"sequences": 9}, {"length": 7}, {"prompts": 3}, {"prompts": 17}, {"tokens": 0}, {"keep": 2.0}],
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        Inertia(**wrong)  # pyright: ignore[reportArgumentType]


def test_one_text_is_cut_into_pieces(lm: LoadedModel) -> None:
    finding = SMALL.run(lm, " ".join(TEXTS[:4]))
    assert finding.checks[0].overall.n == 4 and finding.checks[2].overall.n == 8
    assert finding.notes[0].startswith("Measured on one text cut into 8 pieces of 12 tokens")
    with pytest.raises(UserError, match="Your text has 24 tokens; at least 56 are needed"):
        SMALL.run(lm, TEXTS[0])


def test_what_the_model_or_the_texts_cannot_do(lm: LoadedModel) -> None:
    with pytest.raises(UserError, match="more than the 128 that tiny-llama takes"):
        dataclasses.replace(SMALL, tokens=200).run(lm, TEXTS)
    with pytest.raises(UserError, match="3 texts have 15 tokens or more; 8 are needed"):
        SMALL.run(lm, TEXTS[:3])
