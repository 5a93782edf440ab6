"""The Quality & cost tab, from the shipped sweep to a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from browser import QUESTION, Visitor


def test_quality_and_cost_from_the_shipped_sweep_to_a_report(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    visitor.ask(QUESTION, new_tokens=4)
    visitor.wait_for_phase("finished")
    page.click("button[role=tab]:has-text('Quality & cost')")
    page.wait_for_selector("#pareto-plot label:has-text('your last race')")
    page.wait_for_selector("#pareto-plot .scatterlayer .point")
    points = page.locator("#pareto-plot .scatterlayer .point")
    everything = points.count()
    page.uncheck("#pareto-plot label:has-text('GRIFFIN') input")
    page.wait_for_function(
        "n => document.querySelectorAll('#pareto-plot .scatterlayer .point').length < n", arg=everything
    )
    page.check("#pareto-plot input[value=rate]")
    assert "machine" in page.inner_text(".pareto-note")
    dot = points.first.bounding_box()
    assert dot is not None
    for nudge in (0, 2):
        page.mouse.move(dot["x"] + dot["width"] / 2 + nudge, dot["y"] + dot["height"] / 2)
    page.wait_for_selector("#pareto-plot .plot-tip:not([hidden])")
    assert "nats/token" in page.inner_text("#pareto-plot .plot-tip")
    page.click("#pareto-method input")  # another method brings its own dial and values of it
    page.click("#pareto-method li:has-text('TEAL'), [role=option]:has-text('TEAL')")
    page.wait_for_selector("#pareto-values:has-text('Values of sparsity')")
    assert page.locator("#pareto-values input, #pareto-values textarea").input_value() == "0.07, 0.15, 0.3, 0.45"
    page.fill("#pareto-values input, #pareto-values textarea", "zebra")
    page.click("#pareto-run")
    page.wait_for_selector("#pareto-notice:has-text('write numbers')")
    page.fill("#pareto-values input, #pareto-values textarea", "0.2")
    page.click("#pareto-run")
    page.wait_for_selector("#pareto-notice:has-text('left')", timeout=60_000)
    page.click("#pareto-stop")
    page.wait_for_selector("#pareto-notice:has-text('Stopped')")
    with page.expect_download() as download:
        page.click("#pareto-plot [data-save=csv]")
    download.value.save_as(tmp_path / "points.csv")
    rows = list(csv.DictReader((tmp_path / "points.csv").open(encoding="utf-8", newline="")))
    assert len(rows) >= everything and rows[-1]["source"] in ("your last race", "your sweeps")
    with page.expect_download() as download:
        page.click("#sweep-report-html")
    download.value.save_as(tmp_path / "sweep.html")
    assert "Every row" in (tmp_path / "sweep.html").read_text(encoding="utf-8")
    with page.expect_download() as download:
        page.click("#sweep-report-json")
    download.value.save_as(tmp_path / "sweep.json")
    assert len(json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))) == len(rows)
