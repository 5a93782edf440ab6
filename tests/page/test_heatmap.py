"""The heatmap and its rows, one a layer, by pointer, finger and keyboard. In a real browser."""

from __future__ import annotations

import re
from collections.abc import Callable

from browser import QUESTION, Visitor


def test_rows_are_dragged_by_key_and_pointer_and_reset(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    page = visitor.page
    page.wait_for_selector(".layer-row")
    factor = "document.querySelectorAll('.layer-row[data-changed=true]').length"
    row = page.locator("[data-layer='4']")
    row.focus()
    kept = int(row.get_attribute("aria-valuenow") or 0)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{factor} === 1")
    assert int(row.get_attribute("aria-valuenow") or 0) >= kept + 2
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("PageUp")
    page.wait_for_function(f"{factor} === 3")
    page.keyboard.press("Delete")
    page.wait_for_function(f"{factor} === 0")
    box = page.locator("[data-layer='10']").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 10, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.wait_for_function("Math.abs(document.querySelector(\"[data-layer='10']\").ariaValueNow - 50) <= 3")
    visitor.ask(QUESTION, new_tokens=4)
    visitor.wait_for_phase("finished")
    page.locator("[data-layer='10']").hover()
    assert "on your prompt" in page.inner_text(".heat .tip")
    page.locator("[data-layer='10']").dblclick(position={"x": 3, "y": 2})
    page.wait_for_selector(".stage[data-stale=true]")


def test_a_row_that_a_finger_taps_gets_a_slider_as_wide_as_the_screen(open_page: Callable[..., Visitor]) -> None:
    width, height = 390, 844
    visitor = open_page(width=width, height=height)
    page = visitor.page
    page.wait_for_selector(".layer-row")
    row = page.locator(".layer-row[data-layer='7']")
    box = row.bounding_box()
    assert box is not None
    finger = page.context.new_cdp_session(page)
    middle = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [middle]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    editor = page.locator(".row-editor")
    assert editor.is_visible() and "Layer 7" in editor.inner_text()
    sliding = editor.locator("input").bounding_box()
    assert sliding is not None and sliding["width"] > width / 2 and sliding["height"] >= 24
    assert sliding["x"] >= 0 and sliding["x"] + sliding["width"] <= width
    at = {"x": sliding["x"] + 0.4 * sliding["width"], "y": sliding["y"] + sliding["height"] / 2}
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [at]})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_selector(".layer-row[data-layer='7'][data-changed=true]")
    assert abs(int(row.get_attribute("aria-valuenow") or 0) - 40) <= 5
    editor.get_by_role("button", name="Done").click()
    assert not editor.is_visible()


def test_the_heatmap_is_read_by_keyboard_and_points_at_its_token(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page()
    page = visitor.page
    visitor.ask(QUESTION, new_tokens=12)
    visitor.wait_for_phase("finished")
    canvas = page.get_by_test_id("heatmap").locator("canvas")
    canvas.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowDown")
    assert re.match(r"layer 1, written token 12: [\d,]+ of 1,536 fired", page.inner_text(".heat .tip"))
    lit = "[...CSS.highlights.get('tda-token')].map(range => range.toString()).join('')"
    assert page.evaluate(lit) and visitor.text("sparse").endswith(page.evaluate(lit).rstrip("\n"))
    page.keyboard.press("Home")
    assert "prompt token 1 " in page.inner_text(".heat .tip")
    assert page.evaluate("CSS.highlights.has('tda-token')") is False
    page.click(".heat .view")
    assert page.inner_text("[data-scale=low]").startswith("−")
    assert page.evaluate("document.querySelector('.map canvas').height") == 30


HEAT_MS = """() => {
    const root = document.querySelector(".heat").cloneNode(true);
    document.body.appendChild(root);
    const heat = window.tda.heat(root, () => {});
    const counts = (length) => Uint16Array.from({ length }, (_, at) => (at * 37) % 1536);
    const pack = (length) => btoa(String.fromCharCode(...new Uint8Array(counts(length).buffer)));
    const value = { name: "x", d_ff: Array(30).fill(1536), hidden: 0, prompt: pack(30 * 40), low: 0, high: 0.5,
        prompt_tokens: Array(40).fill("a"), room: 130, kept: null, columns: [], marks: "", scores: null };
    const times = [];
    for (let step = 0; step < 130; step++) {
        const next = { ...value, columns: Array(step + 1).fill(pack(30)) };
        const begin = performance.now();
        heat.draw(next);
        times.push(performance.now() - begin);
    }
    const drawn = root.querySelector(".map canvas").getContext("2d").getImageData(0, 0, 170, 30).data;
    root.remove();
    return [times, drawn.filter((_, at) => at % 4 === 3).every((alpha) => alpha === 255)];
}"""


def test_the_heatmap_draws_every_column_as_it_comes(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page(ready=False)
    visitor.page.wait_for_function("Boolean(window.tda?.heat && document.querySelector('.heat'))")
    times, filled = visitor.page.evaluate(HEAT_MS)
    assert len(times) == 130 and filled
