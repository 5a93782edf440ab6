"""A method written here and put in the registry is everywhere a method can be: nothing else has to know it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import PROMPT, tiny

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.calibration.sources import ANSWERS, Source
from tda_demo.methods import METHODS
from tda_demo.methods.base import Dial, Method
from tda_demo.methods.sequence import SequencePolicy
from tda_demo.methods.settings import Range, setting
from tda_demo.model.feedforward import FeedForward
from tda_demo.model.loading import LoadedModel
from tda_demo.support.progress import Report, silent


@dataclass(frozen=True)
class EveryNth(Method):
    """Keep every n-th neuron."""

    name: ClassVar[str] = "every-nth"
    dial: ClassVar[Dial] = Dial("n", dense=1, sparsest=8)

    n: int = setting(2, "the distance between two neurons that are kept", Range(1, 100))

    def bind(self, lm: LoadedModel, report: Report = silent, source: Source = ANSWERS) -> SequencePolicy:
        return _Counted(self.n)


class _Counted(SequencePolicy):
    def __init__(self, n: int) -> None:
        self.n = n

    def select(self, block: FeedForward, activations: torch.Tensor) -> torch.Tensor:
        return torch.arange(block.d_ff) % self.n == 0

    def count_fired(
        self, block: FeedForward, activations: torch.Tensor, computed: torch.Tensor | None = None
    ) -> torch.Tensor:
        return (activations > 0).sum(dim=1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, EveryNth.name, EveryNth)
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n###\n".join(" ".join(f"w{3 + i * k % 90}" for i in range(35)) for k in (7, 11, 13)), "utf-8")
    return path


def test_it_is_listed_with_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert "every-nth: Keep every n-th neuron.\n  n=2  the distance between" in told


def test_it_races(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "race.html"
    options = ["--method", "every-nth", "--max-new-tokens", "8", "--json", "-", "--report", str(report)]
    assert main(["race", PROMPT, *options, "--set", "n=7"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["method"], told["settings"]) == ("every-nth", {"n": 7})
    assert told["sparsity"]["per_layer"] == pytest.approx([6 / 7] * 3)
    saved = told["arms"]["dense"]["weight_bytes"] - told["arms"]["sparse"]["weight_bytes"]
    assert saved == 3 * 60 * 3 * 32 * 4  # layers, neurons left out, their rows of float32
    assert told["quality"]["kl"] > 0
    assert "every-nth" in report.read_text("utf-8")
    assert main(["race", PROMPT, *options, "--set", "n=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["byte_bound"] == 1 and told["quality"]["kl"] == 0


def test_its_errors_name_its_own_settings(capsys: pytest.CaptureFixture[str]) -> None:
    for assignment, message in (
        ("n", "write name=value, for example n=2."),
        ("cett=0.2", "'every-nth' has no setting 'cett'; it has: n."),
        ("n=0", "n is 0; it must be a number from 1 to 100"),
        ("n=2.5", "'2.5' is not a whole number"),
    ):
        assert main(["race", PROMPT, "--method", "every-nth", "--set", assignment]) == 2
        assert message in capsys.readouterr().err


def test_it_is_evaluated_and_swept(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = ["--text", str(texts), "--prompt-tokens", "20", "--score-tokens", "9"]
    assert main(["evaluate", "--method", "every-nth", "--set", "n=5", "--json", "-", *lengths]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["method"] == "every-nth" and told["sparsity"] == pytest.approx(4 / 5)
    out = tmp_path / "sweep.json"
    axes = ["--method", "every-nth", "--grid", "n=1,5", "--grid", "griffin.keep=0.5", "--precision", "float32"]
    assert main(["sweep", *axes, "--out", str(out), *lengths]) == 0
    rows = json.loads(out.read_text("utf-8"))
    assert [row["method"] for row in rows] == ["dense", "every-nth", "every-nth", "griffin"]
    assert rows[1]["kl"] == 0 and rows[2]["kl"] == pytest.approx(told["kl"])


def test_it_patches_and_restores_a_model(lm: LoadedModel) -> None:
    dense = lm.generate(PROMPT, max_new_tokens=12)
    with EveryNth(n=7)(lm):
        assert lm.generate(PROMPT, max_new_tokens=12) != dense
    assert lm.generate(PROMPT, max_new_tokens=12) == dense
