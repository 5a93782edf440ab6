"""An experiment written here and put in the registry is everywhere one can be: nothing else has to know it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
import numpy as np
import pytest
import torch
from tiny import tiny

import tda_demo.model.loading
from tda_demo.__main__ import main
from tda_demo.methods.settings import Range
from tda_demo.model.loading import LoadedModel
from tda_demo.stats.estimates import means
from tda_demo.support.errors import UserError
from tda_demo.support.progress import Progress, Report, silent
from tda_demo.theory import EXPERIMENTS
from tda_demo.theory.experiment import Claim, Experiment, NumberInput, keep_setting, number_setting, seed_setting
from tda_demo.theory.findings import Finding, Table, check_above_zero, columns
from tda_demo.theory.reading import Reader
from tda_demo.ui.lab.runs import Found, LabFrame, LabRequest, LabView, PointMeasured, lab_job, parse_experiment
from tda_demo.ui.lab.tab import build
from tda_demo.ui.requests import LIMITS, Offers
from tda_demo.ui.service import Service
from tda_demo.ui.worker import Ticket


@dataclass(frozen=True)
class Firing(Experiment):
    """Reads random tokens and counts the neurons above zero."""

    name: ClassVar[str] = "firing"
    title: ClassVar[str] = "Firing"
    summary: ClassVar[str] = "how many neurons are above zero"
    claim: ClassVar[Claim] = Claim("Many neurons fire. <b>Most</b> of them.", "More than the share asked for.")
    duration: ClassVar[str] = "no time at all"
    text_use: ClassVar[str] = "Only counted."

    read_tokens: int = number_setting(6, "of each sequence", Range(2, 64), NumberInput("Tokens to read", 2, 32, 2))
    keep: float = keep_setting()
    seed: int = seed_setting()

    def run(
        self,
        lm: LoadedModel,
        text: Sequence[str] | str | None = None,
        report: Report = silent,
        stop: threading.Event | None = None,
        on_point: Callable[[Any], None] | None = None,
    ) -> Finding:
        random = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(3, 97, (4, self.read_tokens), generator=random)
        activations = Reader(lm, stop).read(ids).activations
        shares = np.stack([(each > 0).double().mean(dim=(1, 2)).numpy() for each in activations], axis=1)
        report(Progress("Firing", 1, 1, "readings"))
        if on_point is not None:
            on_point(shares)
        check = check_above_zero("More neurons fire than asked for", "layers", "sequences", shares - self.keep)
        note = f"text of {len(text or '')} characters"
        return self.finding(lm.name, [check], [note], self.live_tables([shares]))

    @classmethod
    def live_tables(cls, points: Sequence[np.ndarray]) -> tuple[Table, ...]:
        shares = points[-1]
        values = {"layer": list(range(shares.shape[1])), **columns("share above zero", means(shares))}
        return (Table("shares", "Neurons above zero", values),)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPERIMENTS, Firing.name, Firing)
    monkeypatch.setattr(tda_demo.model.loading, "load_model", lambda *_args, **_kwargs: tiny())


class OneModel:
    """A loader that always gives the tiny model."""

    def get(self, *_: Any) -> LoadedModel:
        return tiny()


def test_the_command_line_lists_runs_and_reports_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["theory", "--help"])
    assert "how many neurons are above zero" in capsys.readouterr().out
    text, report = tmp_path / "text.txt", tmp_path / "report.html"
    text.write_text("w3 w4", "utf-8")
    files = ["--text", str(text), "--report", str(report), "--json", "-"]
    assert main(["theory", "firing", "--read-tokens", "8", "--keep", "0.1", *files]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["settings"] == {"read_tokens": 8, "keep": 0.1, "seed": 0} and told["complete"]
    assert told["claim"] == Firing.claim.statement and told["notes"] == ["text of 5 characters"]
    assert told["checks"][0]["outcome"] == "supported" and len(told["tables"]["shares"]["columns"]["layer"]) == 3
    page = report.read_text("utf-8")
    assert "Neurons above zero" in page and "&lt;b&gt;Most" in page and "<b>Most" not in page


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--read-tokens", "1"], "read_tokens is 1; it must be a number from 2 to 64."),
        (["--keep", "1"], "keep is 1; it must be a number between 0 and 1."),
        (["--keep", "nan"], "keep is nan"),
        (["--seed", "-1"], "seed is -1"),
    ],
)
def test_its_settings_are_checked(option: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "firing", *option]) == 2
    assert message in capsys.readouterr().err


def test_the_lab_offers_it_with_a_panel() -> None:
    with gr.Blocks() as page, gr.Tab():
        build(page, Service(Offers()))
    parts: dict[str, Any] = {str(part.elem_id): part for part in page.blocks.values() if getattr(part, "elem_id", None)}
    assert parts["claim-firing"].label == "Firing"
    asked = parts["firing-read_tokens"]
    assert (asked.label, asked.info, asked.value, asked.step) == ("Tokens to read", "2 to 32", 6, 2)
    assert parts["firing-keep"].label == "Share counted as active" and parts["firing-seed"].value == 0
    assert parts["firing-text"].visible and parts["firing-text"].info == "Only counted."
    assert {"firing-run", "firing-stop", "firing-notice", "firing-finding"} <= set(parts)


def test_the_lab_runs_it_and_shows_what_it_found() -> None:
    request = parse_experiment(Firing, Offers(), LIMITS, sizes=Firing.defaults() | {"read_tokens": 8}, text="mine")
    assert request == LabRequest(Firing(read_tokens=8), "mine")
    with pytest.raises(UserError, match="Tokens to read: a whole number from 2 to 32"):
        parse_experiment(Firing, Offers(), LIMITS, sizes=Firing.defaults() | {"read_tokens": 33})

    def nothing(_: Ticket) -> Generator[Any]:
        yield from ()

    ticket = Ticket("a", nothing)
    last = list(lab_job(request)(OneModel(), ticket=ticket))[-1]  # type: ignore[arg-type]
    assert isinstance(last, Found) and last.finding.notes == ("text of 4 characters",)
    view = LabView()
    frame = LabFrame(view, Firing.name)
    events = ticket.drain(0.01)
    assert any(isinstance(event, PointMeasured) for event in events)
    for event in (*events, last):
        view.apply(event)
    outputs = frame.outputs()
    assert set(outputs) == {"notice", "finding"} and view.phase == "finished"
    assert [file["name"] for file in outputs["finding"]["files"]][1] == "theory-firing-shares.csv"
