"""An experiment's report: a plot for every table that lines can show, with its intervals."""

from __future__ import annotations

import pytest

from tda_demo.report.theory import plots, theory_report
from tda_demo.theory.findings import Finding, Table

MOVEMENT = Table(
    "movement",
    "Overlap",
    {
        "history": ["none", "none", "<b>", "<b>"],
        "layer": [0, 1, 0, 1],
        "Jaccard": [0.5, 0.6, 0.7, 0.8],
        "Jaccard low": [0.4, 0.5, 0.6, 0.7],
        "Jaccard high": [0.6, 0.7, 0.8, 0.9],
        "rank correlation": [0.1, 0.2, 0.3, 0.4],
    },
)


def test_a_line_for_every_history_and_a_band_where_there_are_intervals() -> None:
    drawn = plots(MOVEMENT)
    assert drawn.count("<figure>") == 2 and drawn.count("<polyline") == 4 and drawn.count("<polygon") == 2
    assert "&lt;b&gt;" in drawn and "<b>" not in drawn
    assert ">0</text>" in drawn and ">1</text>" in drawn and ">0.25</text>" not in drawn  # there is no layer 0.25


def test_columns_side_by_side_share_a_plot_and_rows_of_one_place_their_mean() -> None:
    drift = {"up to token": [1, 2, 4], "own prompt": [0.5, 0.4, 0.4], "another prompt": [0.3, 0.3, 0.3]}
    drawn = plots(Table("drift", "", drift))
    assert drawn.count("<figure>") == 1 and drawn.count("<polyline") == 2 and "another prompt</li>" in drawn
    curve = {"function": ["relu"] * 4, "run": [0] * 4, "step": [0, 0, 5, 5], "loss, nats per token": [4.0, 6, 1, 1]}
    names = ("share of exact zeros", "share near zero", "mean dL/dp at p > 0 / rms")
    drawn = plots(Table("curve", "", {**curve, **{name: [0.0] * 4 for name in names}}))
    assert drawn.count("<figure>") == 4 and "relu, run 1</li>" in drawn and ">5</text>" in drawn  # the mean of 4 and 6


@pytest.mark.parametrize("name", ["transfer", "movement"])
def test_nothing_to_draw(name: str) -> None:
    assert plots(Table(name, "", {"layer": [0] if name == "transfer" else []})) == ""


def test_the_report_has_plots_and_numbers() -> None:
    report = theory_report(Finding("uncertainty", "Claim.", "P.", "m", {}, (), (), (MOVEMENT,)))
    assert report.index("<polygon") < report.index("<td>0.5</td>")
