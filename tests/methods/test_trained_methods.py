"""Trained methods: what they learn from planted truths, what they keep, what a step of theirs computes and reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES
from tiny import PROMPT, tiny
from transformers import DynamicCache

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.decode.choose import engine_for
from tda_demo.decode.eager import EagerEngine
from tda_demo.methods import DejaVu, MoEfication
from tda_demo.methods.token import TokenPolicy
from tda_demo.methods.trained.artefact import path_of
from tda_demo.methods.trained.dejavu import PredictorRecipe, least_squares
from tda_demo.methods.trained.moefication import RouterRecipe, balanced_clusters
from tda_demo.methods.trained.recipe import fires, recall
from tda_demo.methods.trained.training import trained_artefact
from tda_demo.model.hooks import intercept
from tda_demo.model.loading import LoadedModel
from tda_demo.race import RaceSettings, race
from tda_demo.race.result import summary
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress

pytestmark = pytest.mark.usefixtures("little_text")
WIDTH, LAYERS, RANK, SIZE = 70, 3, 8, 8
METHODS = {"dejavu": DejaVu(keep=0.4, rank=RANK), "moefication": MoEfication(keep=0.4, size=SIZE)}


def steps(lm: LoadedModel) -> torch.Tensor:
    """Logits of the prompt's last token and of a step after it."""
    cache = DynamicCache(config=lm.model.config)
    calls = [lm.prompt_ids(PROMPT), [40]]
    return torch.cat([lm.model(input_ids=torch.tensor([ids]), past_key_values=cache).logits[0, -1:] for ids in calls])


def seen_of(lm: LoadedModel, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A block's inputs and activations at the prompt."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    undo = intercept(lm.blocks[layer], lambda x, a: seen.append((x.clone(), a.reshape(len(x), -1).clone())))
    lm.model(input_ids=torch.tensor([lm.prompt_ids(PROMPT)]))
    undo()
    return seen[0]


def rounded(matrix: torch.Tensor) -> np.ndarray:
    """To int8 with a scale a row, and back, in float64."""
    values = matrix.double().numpy()
    scale = (np.abs(values).max(axis=1, keepdims=True) / 127).astype(np.float32)
    return np.rint(values / scale) * scale


def scored(method: DejaVu | MoEfication, layer: dict[str, torch.Tensor], x: torch.Tensor) -> np.ndarray:
    """What a layer's artefact says of every neuron, in float64: [T, d_ff]."""
    vectors = x.double().numpy()
    if isinstance(method, DejaVu):
        return vectors @ rounded(layer["first"]).T @ rounded(layer["second"]).T
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    said = np.tanh(vectors @ rounded(layer["router"]).T) @ rounded(layer["mix"]).T
    return said[:, layer["expert"].numpy()]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_steps_compute_what_the_artefact_says_and_the_model_is_restored(family: str, name: str) -> None:
    lm, method = tiny(family), METHODS[name]
    dense = steps(lm)
    with dataclasses.replace(method, keep=1)(lm):
        assert torch.equal(steps(lm), dense)
    with method(lm):
        sparse = steps(lm)
    assert torch.equal(sparse[0], dense[0]) and not torch.equal(sparse[1], dense[1])
    assert torch.equal(steps(lm), dense)

    rule, artefact = method.bind(lm), trained_artefact(lm, method.recipe)
    counts = []
    for block, layer in zip(lm.blocks, artefact.layers, strict=True):
        x, a = seen_of(lm, block.layer)
        fired, said = rule.fire(block, x, a).numpy(), scored(method, layer, x)
        limit = rule.limits[block.layer]  # type: ignore[attr-defined]
        sure = np.abs(said - limit) > 1e-4 * np.abs(said).max()  # float32 may round a tie either way
        assert np.array_equal(fired[sure], (said >= limit)[sure]) and sure.mean() > 0.9
        assert np.array_equal(fired, method.bind(lm).fire(block, x, a).numpy())
        counts.append(fired.mean())
    assert 0.1 < np.mean(counts) < 0.9


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_bytes_of_predictors_and_routers_by_hand(family: str) -> None:
    lm = tiny(family)
    dejavu, moefication = (method.bind(lm) for method in METHODS.values())
    assert dejavu.extra_bytes == LAYERS * (RANK * (32 + 4) + WIDTH * (RANK + 4))
    assert moefication.extra_bytes == LAYERS * (9 * (32 + 4) + 9 * (9 + 4))  # nine experts


@pytest.mark.parametrize("name", METHODS)
def test_the_kernel_computes_and_reads_what_fires(name: str) -> None:
    lm = tiny()
    rule: TokenPolicy = METHODS[name].bind(lm)
    engine = engine_for(lm, rule)
    assert engine.name == "compiled CPU step"
    prefill = engine.prefill(lm.prompt_ids(PROMPT), rule)
    arm: Any = engine.sparse_arm(prefill, 4)
    reference: Any = EagerEngine(lm).sparse_arm(prefill, 4)
    dense = engine.dense_arm(prefill, 4)
    for token in (40, 41, 17, 60):
        logits, expected = arm.step(token), reference.step(token)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        assert arm.computed() == reference.computed() and 0 < sum(arm.computed()) < LAYERS * WIDTH
        left_out = LAYERS * WIDTH - sum(arm.computed())
        assert arm.weight_bytes == dense.weight_bytes - left_out * 3 * 32 * 4 + rule.extra_bytes


def test_a_race_says_what_training_took(lm: LoadedModel) -> None:
    *_, finished = race(lm, METHODS["dejavu"], PROMPT, RaceSettings(max_new_tokens=6))
    result: Any = finished.result  # type: ignore[union-attr]
    about = trained_artefact(lm, METHODS["dejavu"].recipe).about
    assert about.tokens > 100
    assert result.note == f"trained for {about.seconds:.0f} s on {about.tokens:,} tokens"
    assert f"dejavu: {result.note}" in summary(result)
    json.dumps(result.to_json(), allow_nan=False)


class Killed(BaseException):
    """What nothing catches."""


def killing(after: int) -> Any:
    """Ends training in the first epoch after so many layers."""

    def report(reading: Progress) -> None:
        if reading.stage.startswith("Training") and reading.done == reading.total * after // LAYERS + 1:
            raise Killed

    return report


@pytest.mark.parametrize("recipe", [PredictorRecipe(rank=4), RouterRecipe(epochs=3)], ids=lambda each: each.name)
def test_a_run_cut_off_is_taken_up_again_and_ends_as_a_whole_one(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TDA_DEMO_CACHE", str(tmp_path / "whole"))
    whole = trained_artefact(tiny(), recipe)
    monkeypatch.setenv("TDA_DEMO_CACHE", str(tmp_path / "cut"))
    lm = tiny()
    path = path_of(lm, recipe)
    with pytest.raises(Killed):
        trained_artefact(lm, recipe, killing(after=2))
    assert not path.exists()
    (unfinished,) = path.parent.glob(".*.unfinished")
    torn = unfinished / "1.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])  # as a file system may leave it after a power cut
    learned: list[int] = []
    learn = type(recipe).learn
    monkeypatch.setattr(
        type(recipe),
        "learn",
        lambda self, lesson, tell: learned.append(lesson.block.layer) or learn(self, lesson, tell),
    )
    stages: set[str] = set()
    found = trained_artefact(lm, recipe, lambda reading: stages.add(reading.stage))
    assert learned == [1, 2]
    assert stages == {"Reading text to train on", f"Training {recipe.name}"}
    assert not list(path.parent.glob(".*.unfinished"))
    for mine, theirs in zip(found.layers, whole.layers, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[part], theirs[part]) for part in mine)
    assert (found.about.loss, found.about.recall) == (whole.about.loss, whole.about.recall)
    assert [len(layer) for layer in found.about.loss] == [recipe.epochs + 1] * LAYERS
    assert found.about.seconds > 0
    trained_artefact(lm, recipe)
    assert learned == [1, 2]  # found in the cache


def test_an_artefact_that_does_not_fit_is_refused_by_name(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lm = tiny()
    path = path_of(lm, PredictorRecipe(rank=4))
    trained_artefact(lm, PredictorRecipe(rank=4))
    content = path.read_bytes()
    others = {
        path_of(tiny("qwen2"), PredictorRecipe(rank=4)): (tiny("qwen2"), "is dejavu, trained for tiny-llama"),
        path_of(lm, PredictorRecipe(rank=5)): (lm, "was trained with other settings"),
    }
    for other, (model, why) in others.items():
        other.write_bytes(content)
        rank = 5 if "settings" in why else 4
        with pytest.raises(UserError, match=f"{other.name} {why}.*remove that file"):
            DejaVu(rank=rank).bind(model)
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: lm)
    assert main(["train", "dejavu", "--set", "rank=5"]) == 2
    told = capsys.readouterr().err
    assert "was trained with other settings" in told and told.count("\n") == 1


@pytest.mark.parametrize("flip", [True, False], ids=["a flipped bit", "cut short"])
def test_a_damaged_artefact_is_trained_anew(own_cache: Path, flip: bool) -> None:
    lm = tiny()
    path = path_of(lm, PredictorRecipe(rank=4))
    first = trained_artefact(lm, PredictorRecipe(rank=4))
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content if flip else content[:-100])
    heard: list[Progress] = []
    again = trained_artefact(lm, PredictorRecipe(rank=4), heard.append)
    assert any("Training" in progress.stage for progress in heard)
    for layer, other in zip(again.layers, first.layers, strict=True):
        assert layer.keys() == other.keys() and all(torch.equal(layer[name], other[name]) for name in layer)
    assert trained_artefact(lm, PredictorRecipe(rank=4)).identity == again.identity


def test_the_command_trains_once_and_tells_the_curves(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())
    first, second = (main(["train", "moefication", "--json", "-"]) or capsys.readouterr().out for _ in range(2))
    assert first == second
    told = json.loads(first)
    assert (told["method"], told["model"], len(told["recall"])) == ("moefication", "tiny-llama", LAYERS)
    assert all(0 <= value <= 1 for layer in told["recall"] for value in layer)
    assert main(["train", "moefication"]) == 0
    assert "trained for" in capsys.readouterr().out


def test_a_predictor_finds_planted_labels() -> None:
    """Labels that a product of rank 4 decides: fitted from half of the tokens, right on the others."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 24, generator=random) + 0.5
    truth = torch.randn(50, 4, generator=random) @ torch.randn(4, 24, generator=random)
    labels = x @ truth.T > 1
    first, second = least_squares(x[:2000], labels[:2000], 5)  # one more for the constant
    assert first.shape == (5, 24) and second.shape == (50, 5)
    said = x[2000:] @ first.T @ second.T
    assert ((said > 0) == labels[2000:]).float().mean() > 0.95
    full, _ = torch.linalg.lstsq(x[:2000], 4 * (labels[:2000].float() - 0.5))[:2]
    best = torch.linalg.norm(x[:2000] @ full - 4 * (labels[:2000].float() - 0.5))
    first, second = least_squares(x[:2000], labels[:2000], 24)
    mine = torch.linalg.norm(x[:2000] @ first.T @ second.T - 4 * (labels[:2000].float() - 0.5))
    assert float(mine) == pytest.approx(float(best), rel=1e-4)


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_few_tokens_teach_what_they_teach_when_repeated(rank: int) -> None:
    """Fewer tokens than inputs are fitted by other matrices than many; the product must be the same."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(20, 24, generator=random) + 0.5
    labels = torch.rand(20, 50, generator=random) < 0.3
    few, many = (
        second @ first for first, second in (least_squares(x.tile(n, 1), labels.tile(n, 1), rank) for n in (1, 3))
    )
    torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-3)


def test_planted_clusters_are_found_and_all_are_equally_large() -> None:
    random = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(4, 16, generator=random), dim=1)
    truth = torch.arange(80) % 4
    rows = torch.nn.functional.normalize(centres[truth] + 0.05 * torch.randn(80, 16, generator=random), dim=1)
    found, means = balanced_clusters(rows, 20, 8, random)
    assert len({(int(a), int(b)) for a, b in zip(truth, found, strict=True)}) == 4
    torch.testing.assert_close(means[found[0]], rows[truth == 0].mean(dim=0))
    for size, count in ((32, 2), (20, 4), (7, 11), (500, 1)):
        sizes = torch.bincount(balanced_clusters(rows, size, 3, random)[0], minlength=count)
        assert len(sizes) == count and sizes.max() - sizes.min() <= 1


def test_what_fires_and_how_much_of_it_is_found() -> None:
    strength = torch.tensor([[0.0, 3, 1, 2], [0, 0, 5, 4]])
    assert fires(strength, 0.5, is_relu=False).tolist() == [[False, True, False, True], [False, False, True, True]]
    assert fires(strength, 0.5, is_relu=True).tolist() == [[False, True, True, True], [False, False, True, True]]
    labels = torch.tensor([[True, False, False], [True, True, False]])
    assert recall(torch.tensor([[9.0, 8, 0], [7, 1, 2]]), labels) == pytest.approx(2 / 3)
    assert recall(torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool)) == 1
