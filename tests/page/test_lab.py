"""The Lab tab: claims measured in a real browser."""

from __future__ import annotations

from browser import Visitor
from playwright.sync_api import expect


def test_the_lab_trains_draws_and_saves(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#tabs button[role=tab]:has-text('Lab')")
    page.wait_for_selector("#root-cause-run")
    page.click("#claims button[role=tab]:has-text('Training')")
    page.fill("#training-runs input", "9")
    page.click("#training-run")
    page.wait_for_selector("#training-notice:has-text('from 4 to 8')")
    page.fill("#training-runs input", "4")
    page.fill("#training-steps input", "5")
    page.click("#training-run")
    page.click("#claims button[role=tab]:has-text('Inertia')")  # what is drawn meanwhile must fit when it is seen
    page.click("#claims button[role=tab]:has-text('Training')")
    page.wait_for_selector("#training-notice:has-text('Finished')", timeout=90_000)  # four runs are trained
    assert page.locator("#training-finding .finding-check").count() == 5
    page.locator("#training-sparsity .plot-area").scroll_into_view_if_needed()
    area = page.locator("#training-sparsity .plot-area").bounding_box()
    page.wait_for_function(
        "width => Math.abs(document.querySelector('#training-sparsity .main-svg')?.clientWidth - width) < 2",
        arg=area["width"] if area else 0,
    )
    assert "step" in visitor.hover("training-sparsity", 0.5)
    with page.expect_download() as saved:
        page.click("#training-finding button:has-text('JSON')")
    assert '"experiment": "training"' in saved.value.path().read_text(encoding="utf-8")


def test_the_lab_stops_within_two_seconds(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#tabs button[role=tab]:has-text('Lab')")
    page.click("#root-cause-run")
    page.wait_for_selector("#root-cause-notice:has-text('Measuring: 1 of')")
    page.click("#root-cause-stop")
    page.wait_for_selector("#root-cause-notice:has-text('Stopped')", timeout=2000)
    expect(page.locator("#root-cause-run")).to_be_enabled()
    expect(page.locator("#root-cause-stop")).to_be_disabled()
