"""The Race tab: what starts a race, what it shows, and what it refuses."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest
from browser import LONG, QUESTION, Visitor
from playwright.sync_api import expect


def test_enter_starts_a_race_and_all_of_it_is_shown(visitor: Visitor) -> None:
    page = visitor.page
    visitor.ask(QUESTION, new_tokens=40)
    visitor.wait_for_phase("finished")
    assert visitor.slot("sparse.tokens") == "40 tokens"
    assert len(visitor.text("dense")) > 60 and len(visitor.text("sparse")) > 60
    assert re.search(r"(\d\.\d\d×|too noisy to tell)", page.inner_text("[data-testid=speedup]"))
    assert re.search(r"limit \d\.\d\d×", visitor.slot("sure"))
    assert re.search(r"\d+ of 39\s+next tokens unchanged", page.inner_text("[data-testid=price]"))
    assert "nats/token" in visitor.slot("price_note") and visitor.slot("verdict")
    assert re.fullmatch(r"\d+\.\d", visitor.slot("dense.rate"))
    assert page.locator(".parting-mark:has-text('texts part here')").count() == 2
    page.click("#drawer button >> nth=0")
    facts = page.inner_text("#machine")
    assert ("CPU" in facts or "GPU" in facts) and "prompt time" in facts and "of the speed limit" in facts
    assert "realised CETT" in visitor.hover("layer-bars", 0.5)
    assert re.search(r"neuron \d+", visitor.hover("neuron-map", 0.5))


def test_the_threshold_moves_by_keyboard_and_zero_is_exact(visitor: Visitor) -> None:
    slider = visitor.page.get_by_test_id("setting")
    number = visitor.page.locator("#tda-cett input[type=number]")
    slider.focus()
    slider.press("ArrowLeft")
    expect(number).to_have_value("0.69")
    visitor.page.click(".presets button:has-text('exact'):visible")
    visitor.page.wait_for_function("document.querySelector('#tda-cett input[type=number]').value == '0'")
    visitor.ask(QUESTION, new_tokens=12)
    visitor.wait_for_phase("finished")
    assert visitor.text("dense") == visitor.text("sparse")
    assert "Too few steps" in visitor.slot("verdict") and visitor.slot("agreement") == "11 of 11"


def test_another_method_brings_its_own_controls_and_a_link_keeps_them(open_page: Callable[..., Visitor]) -> None:
    first = open_page()
    first.page.click("#method input")
    first.page.click("[role=option]:has-text('CoreInfer')")
    first.page.click(".presets button:has-text('paper'):visible")
    first.open_settings()
    first.fill(first.page.locator("#coreinfer-exempt-first input"), "3")
    assert not first.page.is_visible("#tda-cett")
    first.ask(QUESTION, new_tokens=4)
    first.wait_for_phase("finished")
    assert first.slot("lane") == "CoreInfer"
    first.page.evaluate("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    first.page.click("#copy-link")
    first.wait_for_notice("copied")
    link = first.page.evaluate("window.copied")
    second = open_page(query=link.partition("/?")[2])
    expect(second.page.locator("#prompt textarea")).to_have_value(QUESTION)
    expect(second.page.locator("#coreinfer-keep input[type=number]")).to_have_value("0.4")
    second.open_settings()
    expect(second.page.locator("#coreinfer-exempt-first input")).to_have_value("3")
    expect(second.page.locator("#max-new-tokens input[type=number]")).to_have_value("4")
    second.page.click("#reset")
    second.page.wait_for_selector("#tda-cett")
    open_page(query="tda.cett=9").wait_for_notice("This link cannot be used. cett is 9")


def test_two_methods_race_each_other_and_a_link_keeps_both(open_page: Callable[..., Visitor]) -> None:
    first = open_page(query="method=griffin&griffin.keep=0.5")
    pane = ".pane[data-arm=rival]"
    first.page.click("#rival input")
    first.page.click("[role=option]:has-text('TDA')")
    first.page.wait_for_selector("#tda-cett")
    own, rival = (first.page.locator(dial).bounding_box() for dial in ("#griffin-keep", "#tda-cett"))
    assert own is not None and rival is not None and own["x"] < rival["x"]
    first.ask(QUESTION, new_tokens=6)
    first.wait_for_phase("finished")
    assert first.page.is_visible(pane) and first.page.get_by_test_id("text-rival").is_visible()
    assert first.slot("rival.lane") == "TDA" and first.text("rival") and first.slot("rival.tokens") == "6 tokens"
    first.page.click("#drawer button >> nth=0")
    said = first.page.inner_text("#machine")
    assert (
        re.search(r"GRIFFIN read \d\d\.\d % [\s\S]* TDA read \d\d\.\d % [\s\S]* KL \d\.\d{3}", said)
        and "50.0 %" in said
    )
    first.page.evaluate("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    first.page.click("#copy-link")
    first.wait_for_notice("copied")
    second = open_page(query=first.page.evaluate("window.copied").partition("/?")[2])
    second.page.wait_for_selector("#tda-cett")
    assert second.page.is_visible("#griffin-keep")
    open_page(query="rival=tda").wait_for_notice("This link cannot be used. TDA cannot race itself")


def test_a_budget_sets_the_dial_and_says_what_it_came_to(visitor: Visitor) -> None:
    visitor.open_settings()
    visitor.page.click("#by label:has-text('a KL')")
    visitor.ask(QUESTION, new_tokens=8)
    visitor.wait_for_phase("finished")
    visitor.page.click("#drawer button >> nth=0")
    said = re.search(r"set cett = (0\.\d+)\. KL 0\.\d\d [\s\S]* on your prompt \d", visitor.page.inner_text("#machine"))
    assert said is not None
    assert float(visitor.page.input_value("#tda-cett input[type=number]")) == pytest.approx(float(said[1]), abs=1e-2)


def test_shift_enter_makes_a_new_line(visitor: Visitor) -> None:
    visitor.page.fill("#prompt textarea", "one")
    visitor.page.press("#prompt textarea", "Shift+Enter")
    visitor.page.type("#prompt textarea", "two")
    assert visitor.page.input_value("#prompt textarea") == "one\ntwo"
    assert visitor.page.is_disabled("#stop")


def test_an_example_is_raced_at_once(visitor: Visitor) -> None:
    visitor.page.click("#examples button:has-text('Make a list')")
    visitor.wait_for_phase("running")
    visitor.wait_for_text()
    assert "beach" in visitor.page.input_value("#prompt textarea")
    assert not visitor.slot("badge")
    visitor.page.get_by_test_id("stop").click()
    visitor.wait_for_phase("stopped")


def test_stop_stops(visitor: Visitor) -> None:
    visitor.ask(LONG, new_tokens=512)
    visitor.wait_for_text()
    visitor.page.get_by_test_id("stop").click()
    visitor.wait_for_phase("stopped", seconds=2)
    assert visitor.notice == "Stopped." and visitor.slot("dense.state") == "stopped"
    written = visitor.slot("dense.tokens"), visitor.slot("sparse.tokens")
    time.sleep(0.5)
    assert (visitor.slot("dense.tokens"), visitor.slot("sparse.tokens")) == written
    assert visitor.page.is_enabled("button#run") and visitor.page.is_disabled("button#stop")


def test_bad_input_gets_a_sentence_and_the_next_run_works(visitor: Visitor) -> None:
    visitor.ask("   ")
    visitor.wait_for_notice("The prompt is empty")
    visitor.ask(QUESTION, new_tokens=0)
    visitor.wait_for_notice("from 1 to 512")
    visitor.ask("long " * 2000)
    visitor.wait_for_notice("at most 8,000")
    visitor.page.fill("#prompt textarea", QUESTION)
    visitor.set_new_tokens(-5)
    visitor.page.click("button#run")
    visitor.wait_for_notice("from 1 to 512")
    visitor.open_settings()
    exempt = visitor.page.locator("#tda-exempt textarea, #tda-exempt input")
    visitor.fill(exempt, "999")
    visitor.ask(QUESTION, new_tokens=4)
    visitor.wait_for_notice("layer")
    visitor.open_settings()
    visitor.fill(exempt, "")
    visitor.ask(QUESTION)
    visitor.wait_for_phase("finished")


def test_dark_and_narrow(open_page: Callable[..., Visitor]) -> None:
    narrow = open_page(width=390, height=844, theme="dark")
    narrow.ask(QUESTION, new_tokens=4)
    narrow.wait_for_phase("finished")
    assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 390
    colour = "getComputedStyle(document.querySelector('.layer-row i')).backgroundColor"
    dark = narrow.page.evaluate(colour)
    narrow.page.evaluate("document.body.classList.remove('dark')")
    narrow.page.wait_for_function(f"{colour} !== {dark!r}")
