"""Several visitors, and hostile ones."""

from __future__ import annotations

from collections.abc import Callable

from browser import LONG, QUESTION, Visitor

HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> ${window.hacked = 1} "
    "{{#each this}}{{/each}} <b>bold</b> \x07\x1b \u202eabc\u202c مرحبا 😀"
)


def test_a_second_visitor_sees_their_place_and_a_closed_tab_frees_the_model(
    open_page: Callable[..., Visitor],
) -> None:
    first, second = open_page(), open_page()
    first.ask(LONG, new_tokens=512)
    first.wait_for_text()
    second.ask(QUESTION, new_tokens=2)
    second.wait_for_notice("2nd in line")
    assert first.phase == "running"
    first.page.close()
    second.page.wait_for_function("!document.querySelector('#notice').innerText.includes('in line')", timeout=2000)
    second.wait_for_phase("finished")


def test_a_closed_tab_gives_up_its_place_in_the_line(open_page: Callable[..., Visitor]) -> None:
    first, second, third = open_page(), open_page(), open_page()
    first.ask(LONG, new_tokens=512)
    first.wait_for_text()
    second.ask(QUESTION)
    second.wait_for_notice("2nd in line")
    third.ask(QUESTION, new_tokens=2)
    third.wait_for_notice("3rd in line")
    second.page.close()
    third.wait_for_notice("2nd in line", seconds=3)
    first.page.click("button#stop")
    third.wait_for_phase("finished")


def test_hostile_text_is_shown_as_text(visitor: Visitor) -> None:
    visitor.ask(HOSTILE, new_tokens=4)
    visitor.wait_for_phase("finished")
    visitor.page.get_by_test_id("heatmap").hover(position={"x": 5, "y": 5})
    assert "prompt token" in visitor.page.inner_text(".heat .tip")
    assert visitor.page.evaluate("window.hacked") is None


def test_hostile_output_is_shown_as_text(visitor: Visitor) -> None:
    """The stage and the tip, given what a model might write."""
    visitor.show_output(HOSTILE)
    shown = visitor.page.evaluate(
        """() => ({
            text: document.querySelector(".pane .text").textContent,
            verdict: document.querySelector("[data-slot=verdict]").textContent,
            tags: document.querySelectorAll(".stage img, .stage script, .stage .text b").length,
        })"""
    )
    assert shown["text"].replace("≠ texts part here", "") == HOSTILE and shown["verdict"] == HOSTILE
    assert shown["tags"] == 0 and visitor.page.evaluate("window.hacked") is None
