"""Tables made text by text: a run that is cut off goes on, and gives what one that was not gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import tiny

from tda_demo.calibration import parts
from tda_demo.calibration.priors import kept_prior, strength_kind, strength_prior
from tda_demo.calibration.sources import PASSAGES
from tda_demo.calibration.thresholds import kept_thresholds, threshold_table
from tda_demo.model.loading import LoadedModel
from tda_demo.support.progress import Progress

UNTIL = 3


class CutOffError(Exception):
    """A kill, as seen from inside."""


@pytest.fixture
def lm() -> LoadedModel:
    return tiny("llama")


@pytest.fixture(autouse=True)
def every_text_is_worth_a_file(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    monkeypatch.setattr(parts, "_WORTH_SECONDS", 0.0)
    return own_cache / "unfinished"


def thresholds(lm: LoadedModel, report: Callable[[Progress], Any]) -> np.ndarray:
    return np.array(threshold_table(lm, weighted=True, source=PASSAGES, report=report).thresholds)


def prior(lm: LoadedModel, report: Callable[[Progress], Any]) -> np.ndarray:
    return np.stack([row.numpy() for row in strength_prior(lm, PASSAGES, report=report)])


@pytest.mark.parametrize(("table", "stage"), [(thresholds, "Calibrating"), (prior, "Averaging")])
def test_a_table_that_is_cut_off_goes_on_where_it_was(
    table: Callable[..., np.ndarray],
    stage: str,
    lm: LoadedModel,
    every_text_is_worth_a_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    forward = type(lm.model).forward

    def counted(self: Any, *arguments: Any, **named: Any) -> Any:
        read.append(1)
        return forward(self, *arguments, **named)

    def cut_off(progress: Progress) -> None:
        if progress.stage.startswith(stage) and progress.done == UNTIL:
            raise CutOffError

    expected = table(lm, lambda _progress: None)
    for kept in (kept_thresholds(lm, True, PASSAGES), kept_prior(lm, strength_kind(False), PASSAGES)):
        kept.path.unlink(missing_ok=True)
    with pytest.raises(CutOffError):
        table(lm, cut_off)
    files = sorted(every_text_is_worth_a_file.glob("*.npz"))
    assert len(files) == UNTIL
    files[0].write_bytes(b"\0" + files[0].read_bytes()[1:])  # noticed, and made anew
    monkeypatch.setattr(type(lm.model), "forward", counted)
    assert np.array_equal(table(lm, lambda _progress: None), expected)
    assert len(read) == len(PASSAGES.texts(lm).texts) - UNTIL + 1
    assert not list(every_text_is_worth_a_file.glob("*.npz"))
    assert not list(every_text_is_worth_a_file.glob(".*.sha256"))


def test_what_is_read_at_once_is_not_kept(
    lm: LoadedModel, every_text_is_worth_a_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_WORTH_SECONDS", 1e9)
    prior(lm, lambda _progress: None)
    assert not every_text_is_worth_a_file.exists()
