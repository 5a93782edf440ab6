"""Little text, in the tiny models' words, for methods that look for thresholds or are trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from tda_demo.calibration import answers, sources
from tda_demo.calibration.documents import Document, Passages
from tda_demo.methods.trained import training

TEXTS = tuple(" ".join(f"w{3 + i * k % 90}" for i in range(30)) for k in (3, 7, 11, 13))
DOCUMENTS = tuple(Document(words, line) for line, words in enumerate(TEXTS, start=1))


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def little_text(monkeypatch: pytest.MonkeyPatch, shared_cache: Path) -> None:
    """It is what there is to learn from; what one test of a file trains, the next finds."""
    for module in (training, sources):
        monkeypatch.setattr(module, "calibration_passages", lambda: Passages("test", DOCUMENTS))
    monkeypatch.setattr(answers, "project_passages", lambda held_out: list(DOCUMENTS[held_out:]))
    monkeypatch.setattr(answers, "LENGTH", 12)
    monkeypatch.setattr(training, "_WRITTEN", 8)
    monkeypatch.setattr(training, "_LENGTH", 24)
    monkeypatch.setenv("TDA_DEMO_CACHE", str(shared_cache))
