"""A large model's first race: nothing is calibrated before it, and what was done in its place is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny

from tda_demo.calibration import answers
from tda_demo.calibration.sources import ANSWERS
from tda_demo.methods import METHODS, TDA, first_use
from tda_demo.methods.base import EvidenceMethod, Method
from tda_demo.methods.first_use import bind_at_once, is_calibrated
from tda_demo.model.loading import LoadedModel
from tda_demo.race import Finished, RaceSettings, race
from tda_demo.support.errors import UserError
from tda_demo.support.interruption import GivenUp
from tda_demo.support.progress import Progress, silent
from tda_demo.ui.models import Models

TRAINED = ("dejavu", "moefication")


@pytest.fixture
def large(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A model that counts as large, of which nothing is known."""
    monkeypatch.setattr(first_use, "SMALL", 0)
    return tiny("llama")


@pytest.fixture
def no_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("answers are written")

    monkeypatch.setattr(answers, "write", refuse)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in TRAINED])
def test_no_answer_is_written_before_the_first_race(name: str, large: LoadedModel, no_answers: None) -> None:
    method = METHODS[name]()
    bound = bind_at_once(method, large)
    assert not bound.note or large.name in bound.note
    assert bool(bound.note) is not is_calibrated(method, large)
    if isinstance(method, EvidenceMethod) and bound.note:
        assert isinstance(bound.method, EvidenceMethod) and bound.method.prior == 0


def test_the_default_is_chosen_from_the_prompt_and_the_result_says_so(large: LoadedModel, no_answers: None) -> None:
    *_, last = race(large, TDA(), "alpha beta", RaceSettings(4))
    assert isinstance(last, Finished)
    assert last.result.settings["online"] and last.result.settings["shape"] == "uniform"
    assert "from this prompt alone" in last.result.note and "not calibrated" in last.result.note


def test_the_library_does_without_too_and_warns(large: LoadedModel, no_answers: None) -> None:
    ids = torch.tensor([large.prompt_ids("alpha beta")])
    with pytest.warns(UserWarning, match="this prompt alone: .* not calibrated yet") as told, TDA()(large):
        assert large.model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] == ids.shape[1] + 3
    assert told[0].filename == __file__ and "'tda_demo calibrate'" in str(told[0].message)


def test_once_it_is_calibrated_the_method_is_what_was_asked_for(large: LoadedModel) -> None:
    method = TDA(0.2)
    assert not is_calibrated(method, large)
    expected = method.bind(large, source=ANSWERS)
    bound = bind_at_once(method, large)
    assert (bound.method, bound.note) == (method, "") and is_calibrated(method, large)
    torch.testing.assert_close(torch.tensor(bound.policy.limits), torch.tensor(expected.limits))  # type: ignore[attr-defined]


def test_a_small_model_is_calibrated_first(own_cache: Path) -> None:
    bound = bind_at_once(TDA(0.2), tiny("llama"))
    assert (bound.method, bound.note) == (TDA(0.2), "")


@pytest.mark.parametrize("method", [TDA(cett=0.0), METHODS["griffin"]()], ids=lambda method: method.name)
def test_what_needs_no_calibration_is_as_ever(method: Method, large: LoadedModel, no_answers: None) -> None:
    assert bind_at_once(method, large).note == ""


def test_the_page_calibrates_a_large_model_while_nobody_races(
    large: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_use, "SMALL", 0)
    models, told = Models(2), []
    models._loaded["tiny", "float32"] = large
    broken_off = 0

    def report(progress: Progress) -> None:
        nonlocal broken_off
        told.append(models.calibrating[large.fingerprint])
        if len(told) == 3:  # a visitor comes
            broken_off += 1
            raise GivenUp

    with pytest.raises(GivenUp):
        models.calibrate(report)
    assert broken_off and not is_calibrated(TDA(), large)
    assert models.calibrate(report) and is_calibrated(TDA(), large)
    assert not models.calibrating and not models.calibrate(report)
    assert bind_at_once(TDA(), large).note == ""


def test_a_model_that_cannot_be_calibrated_is_left_alone(large: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(first_use, "calibrate", fails)
    models = Models(2)
    models._loaded["tiny", "float32"] = large
    assert models.calibrate(silent)
    assert not models.calibrate(silent)
