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
