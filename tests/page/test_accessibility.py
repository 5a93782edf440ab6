"""Every view, by axe-core: nothing that keeps anybody out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import QUESTION, Visitor


def violations(visitor: Visitor) -> list[str]:
    found = Axe().run(visitor.page).response["violations"]
    return [f"{each['id']}: {[node['html'][:120] for node in each['nodes']]}" for each in found]


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_the_race_tab_before_a_race_and_its_sheet(open_page: Callable[..., Visitor], theme: str, width: int) -> None:
    visitor = open_page(theme=theme, width=width)
    visitor.page.wait_for_selector("[data-testid=text-dense]:not(:empty)")
    assert violations(visitor) == []
    visitor.open_settings()
    assert violations(visitor) == []


def test_a_finished_race_with_its_drawer_and_the_other_tabs(visitor: Visitor) -> None:
    visitor.ask(QUESTION, new_tokens=24)
    visitor.wait_for_phase("finished")
    visitor.page.click("#open-drawer")
    visitor.page.locator("#layer-bars .plot-area").scroll_into_view_if_needed()
    visitor.page.wait_for_selector("#layer-bars .main-svg")
    assert violations(visitor) == []
    for tab, drawn in (("Quality & cost", "#pareto-plot .main-svg"), ("Lab", "#root-cause-run")):
        visitor.page.click(f"#tabs button[role=tab]:has-text('{tab}')")
        visitor.page.wait_for_selector(drawn, state="attached")
        assert violations(visitor) == []
