"""The race tab in one look: what is in view, what moves, what answers, what stays put. In a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from browser import LONG, QUESTION, Visitor
from playwright.sync_api import Browser

WINDOWS = [(1440, 900), (1280, 720), (390, 844)]
SEEN = ("text-dense", "text-sparse", "speedup", "price", "heatmap")


PLACES = """names => Object.fromEntries(names.map(name => {
    const element = document.querySelector(`[data-testid=${name}]`);
    const box = element?.getBoundingClientRect();
    return [name, !element?.checkVisibility() ? null : [box.left, box.top, box.right, box.bottom]];
}))"""


def places(visitor: Visitor, *names: str) -> dict[str, list[float] | None]:
    return visitor.page.evaluate(PLACES, list(names))


def assert_in_view(visitor: Visitor, width: int, height: int, *names: str) -> None:
    assert visitor.page.evaluate("window.scrollY") == 0
    for name, box in places(visitor, *names).items():
        assert box is not None, f"{name} is not there"
        left, top, right, bottom = box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height, f"{name} is at {box}"


SHIFTS = """() => {
    window.shifts = [];
    const told = ({ node }) => node?.className || node?.id || String(node);
    const watch = (list) => list.getEntries().filter((entry) => !entry.hadRecentInput)
        .forEach((entry) => window.shifts.push([entry.value, entry.sources.map(told)]));
    new PerformanceObserver(watch).observe({ type: "layout-shift" });
}"""


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_all_of_a_race_is_in_one_viewport_from_run_to_the_end_and_nothing_shifts(
    open_page: Callable[..., Visitor], width: int, height: int
) -> None:
    visitor = open_page(width=width, height=height)
    names = SEEN if width < 700 else (*SEEN, "stop", "prompt", "run", "preview", "verdict", "history", "setting")
    assert_in_view(visitor, width, height, *names)
    visitor.set_new_tokens(24)
    before = places(visitor, "heatmap", "speedup", "price", "verdict")
    visitor.page.evaluate(SHIFTS)
    visitor.page.get_by_test_id("run").click()
    for phase in ("running", "finished"):
        visitor.page.wait_for_function(
            "phase => [phase, 'judging', 'finished'].includes(document.querySelector('.stage').dataset.phase) "
            "&& !document.querySelector('.badge').textContent",
            arg=phase,
            timeout=60_000,
        )
        assert_in_view(visitor, width, height, *SEEN, *(() if width < 700 else ("stop",)))
    visitor.wait_for_phase("finished")
    assert_in_view(visitor, width, height, *names)
    cut = visitor.page.locator(".board:not(.in-duel) .note").evaluate_all(
        "all => all.filter(e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight + 1)"
        ".map(e => e.textContent)"
    )
    assert cut == []  # what stands under the headline can be read to its end
    after = places(visitor, "heatmap", "verdict")
    assert {name: before[name] for name in after} == after  # one geometry
    shifts = visitor.page.evaluate("window.shifts")
    assert sum(value for value, _ in shifts) <= 0.01, shifts


def test_a_recorded_race_moves_before_the_model_is_there(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page(ready=False)
    page = visitor.page
    page.wait_for_selector("gradio-app .stage")
    assert re.match(r"Recorded: SmolLM2-135M-Instruct, int8, .+, \d{4}-\d\d-\d\d", visitor.slot("badge"))
    page.wait_for_function("document.querySelector('.stage').dataset.phase === 'finished'")
    assert visitor.slot("rival.lane") == "TDA paper" and "damaged" in visitor.slot("rival.price_label")
    assert page.input_value("#prompt textarea") == QUESTION


def test_one_key_races_the_prompt_that_stands_there_and_the_price_comes_while_it_is_written(
    open_page: Callable[..., Visitor],
) -> None:
    visitor = open_page()
    visitor.set_new_tokens(128)
    visitor.page.fill("#prompt textarea", "")  # what stands there in grey is raced too
    visitor.page.press("#prompt textarea", "Enter")
    visitor.page.wait_for_function(
        "document.querySelector('[data-slot=price_label]').textContent.includes('so far') "
        "&& !document.querySelector('.badge').textContent",
        timeout=60_000,
    )
    assert visitor.phase == "running" and re.match(r"\d+ of \d+", visitor.slot("agreement"))
    assert visitor.slot("speedup") or "measuring, n = " in visitor.slot("claim")
    visitor.page.get_by_test_id("stop").click()
    visitor.wait_for_phase("stopped")


DRAG = """value => {
    const setting = document.querySelector("[data-testid=setting]");
    const [preview, row] = ["[data-testid=preview]", "[data-layer='9']"].map((name) => document.querySelector(name));
    const told = () => preview.innerText + row.ariaValueText;
    const before = told();
    const begin = performance.now();
    setting.value = value;
    setting.dispatchEvent(new Event("input", { bubbles: true }));
    return [before, told(), performance.now() - begin];
}"""


def test_a_drag_is_answered_in_the_same_frame(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    visitor.page.get_by_test_id("preview").wait_for()  # what is not seen has no text
    before, after, _ = visitor.page.evaluate(DRAG, 0.35)
    assert before != after and re.search(r"MLP bytes\s*\d+ %", after) and "limit 1." in after
    assert "expected" in after
    visitor.page.click(".presets button:has-text('exact'):visible")
    visitor.page.wait_for_function("document.querySelector('[data-slot=share]').textContent === '100 %'")
    bytes_dial = visitor.page.locator("[data-dial=bytes]")
    bytes_dial.focus()
    for _ in range(10):
        bytes_dial.press("ArrowLeft")
    visitor.page.wait_for_function("Number(document.querySelector('#tda-cett input[type=number]').value) > 0.2")
    quality = visitor.page.locator("[data-dial=quality]")
    quality.fill("0")
    visitor.page.wait_for_function("document.querySelector('[data-slot=kl]').textContent === '0'")


def test_a_result_of_other_settings_is_dimmed_and_the_strip_brings_it_back(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    page = visitor.page
    visitor.ask(QUESTION, new_tokens=24)
    visitor.wait_for_phase("finished")
    assert page.get_attribute(".stage", "data-stale") == "false"
    page.click(".presets button:has-text('paper'):visible")
    page.wait_for_selector(".stage[data-stale=true]")
    assert page.inner_text(".from") == "from TDA 0.7: run again"
    page.click(".from")
    page.wait_for_function("document.querySelectorAll('.history button').length === 2")
    assert page.get_attribute(".stage", "data-stale") == "false" and "damaged" in visitor.slot("price_label")
    remedy = page.locator(".remedy")
    assert "keep it" in remedy.inner_text()
    text = visitor.text("sparse")
    page.fill("#prompt textarea", "Something else")
    page.click(".history button >> nth=0")
    page.wait_for_function("document.querySelector('#tda-cett input[type=number]').value === '0.7'")
    assert visitor.text("sparse") != text and page.get_attribute(".stage", "data-stale") == "false"
    assert page.input_value("#prompt textarea") == QUESTION
    text = visitor.text("dense")
    page.click("button#run")  # which answers what stands there
    page.wait_for_function("document.querySelectorAll('.history button').length === 3")
    assert visitor.text("dense") == text


def test_what_is_changed_while_a_race_runs_is_said_to_be_for_the_next(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    visitor.ask(LONG, new_tokens=512)
    visitor.wait_for_text()
    visitor.page.evaluate(DRAG, 0.3)
    visitor.page.wait_for_selector(".from:has-text('next race')")
    assert visitor.page.get_attribute(".stage", "data-stale") == "false"
    visitor.page.get_by_test_id("stop").click()
    visitor.wait_for_phase("stopped")


@pytest.mark.parametrize(("width", "height"), WINDOWS)
def test_the_race_is_on_before_gradio_is_and_goes_on_where_it_stands(
    browser: Browser, address: str, width: int, height: int
) -> None:
    page = browser.new_page(viewport={"width": width, "height": height})
    page.add_init_script(f"({SHIFTS})()")
    page.goto(address, wait_until="commit")
    place = ".panes').getBoundingClientRect().toJSON()"
    early = page.wait_for_function(
        "document.querySelector('#early [data-arm=dense] .text')?.textContent.length > 20 "
        f"&& document.querySelector('#early {place}"
    ).json_value()
    page.wait_for_function("document.querySelector('[data-arm=dense] .text').textContent.length > 80")  # it grows
    page.wait_for_function("document.querySelector('gradio-app .stage') && !document.querySelector('#early')")
    assert page.evaluate(f"document.querySelector('gradio-app {place}") == early
    # The recorded race takes six seconds, whoever shows it.
    page.wait_for_function("document.querySelector('.stage').dataset.phase === 'finished'", timeout=7000)
    assert sum(value for value, _ in page.evaluate("window.shifts")) < 0.1
    page.close()


def test_in_a_frame_the_stage_stands_alone(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page(query="embed=race&theme=dark&tda.cett=0.3", width=900, height=620)
    page = visitor.page
    assert page.evaluate("document.body.classList.contains('dark')")
    assert not page.is_visible("#prompt") and not page.is_visible("#dial-row") and not page.is_visible(".masthead")
    assert_in_view(visitor, 900, 620, *SEEN, "verdict")
    assert page.input_value("#tda-cett input[type=number]") == "0.3"


def test_a_click_answers_at_once_in_a_second_race_too(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    for _ in range(2):
        visitor.ask(QUESTION, new_tokens=4)
        begin = time.monotonic()
        visitor.page.wait_for_function("document.querySelector('#stop').disabled === false")
        visitor.wait_for_phase("finished")
        assert time.monotonic() > begin
    assert visitor.page.locator(".history button").count() == 2
