"""The real page, on the real model, in a real browser."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from browser import ROOT, Visitor, launch, served_page
from gradio_client import Client
from gradio_client.exceptions import AppError
from playwright.sync_api import Browser, expect, sync_playwright

QUESTION = "Why is the sky blue? Explain it in simple words."
LONG = "Write a long story about a lighthouse keeper and the sea."
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> ${window.hacked = 1} "
    "{{#each this}}{{/each}} <b>bold</b> \x07\x1b \u202eabc\u202c مرحبا 😀"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served_page(tmp_path_factory.mktemp("page") / "log.txt") as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture
def open_page(browser: Browser, address: str) -> Iterator[Callable[..., Visitor]]:
    """Opens tabs; after the test none of them may have complained."""
    visitors: list[Visitor] = []

    def open_one(**options: object) -> Visitor:
        visitors.append(Visitor(browser, address, **options))  # type: ignore[arg-type]
        return visitors[-1]

    yield open_one
    for visitor in visitors:
        if not visitor.page.is_closed():
            visitor.page.close()
        assert visitor.complaints == []


@pytest.fixture
def visitor(open_page: Callable[..., Visitor]) -> Visitor:
    return open_page()


def hover(visitor: Visitor, plot: str, across: float) -> str:
    """The tip at ``across`` (0..1) of the plot's width."""
    canvas = visitor.page.locator(f"#{plot} .plot-canvas")
    visitor.page.locator(f"#{plot} .plot-area").scroll_into_view_if_needed()
    visitor.page.wait_for_selector(f"#{plot} .plot:not([data-due])")  # it is drawn once it is seen
    box = canvas.bounding_box()
    assert box is not None
    for nudge in (0, 3):  # plotly answers to movement
        visitor.page.mouse.move(box["x"] + 40 + across * (box["width"] - 50) + nudge, box["y"] + box["height"] / 2)
    visitor.page.wait_for_selector(f"#{plot} .plot-tip:not([hidden])")
    return visitor.page.inner_text(f"#{plot} .plot-tip")


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
    assert "realised CETT" in hover(visitor, "layer-bars", 0.5)
    assert re.search(r"neuron \d+", hover(visitor, "neuron-map", 0.5))


def test_the_threshold_moves_by_keyboard_and_zero_is_exact(visitor: Visitor) -> None:
    slider = visitor.page.get_by_test_id("setting")
    number = visitor.page.locator("#tda-cett input[type=number]")
    slider.focus()
    slider.press("ArrowLeft")
    assert float(number.input_value()) == 0.69
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
    assert open_page(query="tda.cett=9").notice.startswith("This link cannot be used. cett is 9")


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
    assert open_page(query="rival=tda").notice.startswith("This link cannot be used. TDA cannot race itself")


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


def test_hostile_text_is_shown_as_text(visitor: Visitor) -> None:
    visitor.ask(HOSTILE, new_tokens=4)
    visitor.wait_for_phase("finished")
    visitor.page.get_by_test_id("heatmap").hover(position={"x": 5, "y": 5})
    assert "prompt token" in visitor.page.inner_text(".heat .tip")
    assert visitor.page.evaluate("window.hacked") is None


def test_hostile_output_is_shown_as_text(visitor: Visitor) -> None:
    """The stage and the tip, given what a model might write."""
    shown = visitor.page.evaluate(
        """hostile => {
            const value = {phase: "finished", label: hostile, duel: true, standing: {}, damaged: [],
                remedy: {label: hostile}, track: {}, texts: {}, heat: null,
                slots: {verdict: hostile, lane: hostile, agreement: hostile}};
            for (const arm of ["dense", "sparse", "rival"]) {
                value.track[arm] = {share: 1, mark: null};
                value.texts[arm] = {pieces: [hostile], part: 10};
            }
            const element = document.querySelector("#stage .stage").parentElement;
            window.tda.stage(element, {value}, () => {});
            return {
                text: document.querySelector(".pane .text").textContent,
                verdict: document.querySelector("[data-slot=verdict]").textContent,
                tags: document.querySelectorAll(".stage img, .stage script, .stage .text b").length,
            };
        }""",
        HOSTILE,
    )
    assert shown["text"].replace("≠ texts part here", "") == HOSTILE and shown["verdict"] == HOSTILE
    assert shown["tags"] == 0 and visitor.page.evaluate("window.hacked") is None


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


def test_dark_and_narrow(open_page: Callable[..., Visitor]) -> None:
    narrow = open_page(width=390, height=844, theme="dark")
    narrow.ask(QUESTION, new_tokens=4)
    narrow.wait_for_phase("finished")
    assert narrow.page.evaluate("document.documentElement.scrollWidth") <= 390
    colour = "getComputedStyle(document.querySelector('.layer-row i')).backgroundColor"
    dark = narrow.page.evaluate(colour)
    narrow.page.evaluate("document.body.classList.remove('dark')")
    narrow.page.wait_for_function(f"{colour} !== {dark!r}")


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


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[Client]:
    client = Client(address, verbose=False)
    yield client
    client.close()


def test_the_api_is_one_endpoint(client: Client) -> None:
    described = client.view_api(return_format="dict")
    assert isinstance(described, dict)
    assert list(described["named_endpoints"]) == ["/race"] and not described["unnamed_endpoints"]
    names = [parameter["parameter_name"] for parameter in described["named_endpoints"]["/race"]["parameters"]]
    expected = (
        "prompt cett max_new_tokens model precision online temperature top_p seed method settings rival rival_settings"
    )
    assert names == expected.split()


def test_the_api_returns_the_documented_json(client: Client) -> None:
    told = client.predict(QUESTION, cett=0.1, max_new_tokens=8, api_name="/race")
    assert set(told) >= {
        "model", "device", "precision", "method", "settings", "prompt_tokens", "arms", "speedup", "byte_bound",
        "efficiency", "sparsity", "quality", "environment",
    }  # fmt: skip
    assert told["settings"]["cett"] == 0.1 and set(told["arms"]) == {"dense", "sparse"}
    assert told["arms"]["dense"]["tokens"] == 8 and len(told["arms"]["dense"]["step_ms"]) == 7


def test_the_api_races_any_method(client: Client) -> None:
    told = client.predict(QUESTION, method="griffin", settings={"keep": 0.75}, max_new_tokens=8, api_name="/race")
    assert (told["method"], told["settings"]["keep"]) == ("griffin", 0.75)
    assert told["sparsity"]["mean"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"method": "griffin", "cett": 0.2}, "'griffin' has no setting 'cett'"),
        ({"method": "griffin", "settings": {"keep": 2}}, "from 0 to 1"),
        ({"method": "no-such"}, "does not offer that method"),
        ({"prompt": " "}, "prompt is empty"),
        ({"max_new_tokens": 0}, "from 1 to 512"),
        ({"max_new_tokens": -1}, "from 1 to 512"),
        ({"max_new_tokens": 10**9}, "from 1 to 512"),
        ({"cett": "NaN"}, "from 0 to 0.7"),
        ({"cett": 9}, "from 0 to 0.7"),
        ({"model": "no/such-model"}, "does not offer that model"),
        ({"model": "/etc"}, "does not offer that model"),
        ({"precision": "int3"}, "does not offer that precision"),
    ],
)
def test_the_api_refuses_in_a_sentence(client: Client, wish: dict[str, object], says: str) -> None:
    with pytest.raises(AppError, match=says):
        client.predict(**{"prompt": QUESTION, **wish}, api_name="/race")


def test_nothing_can_be_uploaded(address: str) -> None:
    assert httpx.post(f"{address}gradio_api/upload", files={"files": ("a.txt", b"some text")}).status_code == 404


def test_only_the_page_s_own_scripts_are_served(address: str) -> None:
    assert httpx.get(f"{address}gradio_api/file={ROOT / 'assets' / 'plot.js'}").status_code == 200
    for secret in (ROOT / "app.py", ROOT / "tda_demo" / "data" / "passages.jsonl", "/etc/passwd"):
        assert httpx.get(f"{address}gradio_api/file={secret}").status_code == 403


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
    page.wait_for_selector("#training-notice:has-text('Finished')")
    assert page.locator("#training-finding .finding-check").count() == 5
    page.locator("#training-sparsity .plot-area").scroll_into_view_if_needed()
    area = page.locator("#training-sparsity .plot-area").bounding_box()
    page.wait_for_function(
        "width => Math.abs(document.querySelector('#training-sparsity .main-svg')?.clientWidth - width) < 2",
        arg=area["width"] if area else 0,
    )
    assert "step" in hover(visitor, "training-sparsity", 0.5)
    with page.expect_download() as saved:
        page.click("#training-finding button:has-text('JSON')")
    assert '"experiment": "training"' in saved.value.path().read_text(encoding="utf-8")


def test_the_lab_stops_within_two_seconds(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#tabs button[role=tab]:has-text('Lab')")
    page.click("#root-cause-run")
    page.wait_for_selector("#root-cause-notice:has-text('Measuring: 1 of')")
    page.click("#root-cause-stop")
    page.wait_for_selector("#root-cause-notice:has-text('Stopped before enough')", timeout=2000)
    expect(page.locator("#root-cause-run")).to_be_enabled()
    expect(page.locator("#root-cause-stop")).to_be_disabled()
