"""The real page in a process of its own, and a real browser in front of it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, BrowserContext, Locator, Page, Playwright, Route

ROOT = Path(__file__).resolve().parents[2]
QUESTION = "Why is the sky blue? Explain it in simple words."
LONG = "Write a long story about a lighthouse keeper and the sea."
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def served_page(log: Path, *arguments: str) -> Iterator[str]:
    """``python app.py`` on a free port; gives its address once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "app.py", "--port", str(port), *arguments]
    with log.open("w") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as server:
        try:
            address = f"http://127.0.0.1:{port}/"
            _wait_for(address, server, log)
            yield address
        finally:
            server.terminate()


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"the page does not answer:\n{log.read_text()}")


def launch(playwright: Playwright) -> Browser:
    path = os.environ.get("TDA_DEMO_CHROMIUM") or shutil.which("chromium")
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


def _context(browser: Browser) -> BrowserContext:
    """The one that all tabs share: what the page is made of is fetched and compiled once."""
    return browser.contexts[0] if browser.contexts else browser.new_context()


SHOW_OUTPUT = """text => {
    window.tda.beginRace();  // the recorded race would write over it
    const value = {phase: "finished", label: text, duel: true, standing: {}, damaged: [],
        remedy: {label: text}, track: {}, texts: {}, heat: null,
        slots: {verdict: text, lane: text, agreement: text}};
    for (const arm of ["dense", "sparse", "rival"]) {
        value.track[arm] = {share: 1, mark: null};
        value.texts[arm] = {pieces: [text], part: 10};
    }
    window.tda.stage(document.querySelector("#stage .stage").parentElement, {value}, () => {});
}"""


class Visitor:
    """One open tab. What goes wrong in it, and what it asks of other hosts, is kept in ``complaints``."""

    def __init__(
        self,
        browser: Browser,
        address: str,
        width: int = 1280,
        height: int = 900,
        theme: str = "light",
        query: str = "",
        ready: bool = True,
    ) -> None:
        self.complaints: list[str] = []
        self.page: Page = _context(browser).new_page()
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
        self.page.set_default_timeout(30_000)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(f"console: {line.text}"))
        self.page.route(lambda url: urlsplit(url).hostname not in ("127.0.0.1", None), self._refuse)
        self.page.goto(f"{address}?{query}" if query else address)
        if ready:
            self.wait_until_ready()

    def wait_until_ready(self) -> None:
        """The model is loaded, and the values that came with that are drawn: nobody's key comes between the two."""
        self.page.wait_for_selector("#model-notice:has-text('ready')", state="attached", timeout=180_000)
        self.page.evaluate(
            "new Promise((done) => requestIdleCallback(() => requestAnimationFrame(done), { timeout: 2000 }))"
        )

    def _refuse(self, route: Route) -> None:
        self.complaints.append(f"asked another host: {route.request.url}")
        route.abort()

    def ask(self, prompt: str, new_tokens: int | None = None) -> None:
        """Types a prompt and presses Enter."""
        if new_tokens is not None:
            self.set_new_tokens(new_tokens)
        self.page.fill("#prompt textarea", prompt)
        # Until something new is drawn there is no phase to wait for: what stands there may be an earlier race.
        self.page.evaluate("document.querySelector('.stage').dataset.phase = 'asked'")
        self.page.press("#prompt textarea", "Enter")

    def set_new_tokens(self, number: int) -> None:
        field = self.page.locator("#max-new-tokens input")
        self.open_settings()
        self.fill(field, str(number))
        self.page.keyboard.press("Escape")

    def show_output(self, text: str) -> None:
        """The stage, given ``text`` as a model might have written it, and everywhere else."""
        self.page.evaluate(SHOW_OUTPUT, text)

    def open_settings(self) -> None:
        """The sheet of all settings."""
        if not self.page.locator("#sheet").is_visible():
            self.page.click("#open-sheet")

    def fill(self, field: Locator, text: str) -> None:
        """Types ``text`` until it stays: a field that has just been mounted may still be given its default."""
        for _ in range(20):
            field.fill(text)
            field.press("Tab")
            self.page.wait_for_timeout(100)
            if field.input_value() == text:
                return
        raise AssertionError(f"'{text}' does not stay as typed")

    @property
    def phase(self) -> str:
        return self.page.get_attribute(".stage", "data-phase") or ""

    @property
    def notice(self) -> str:
        return self.page.inner_text("#notice")

    def text(self, arm: str) -> str:
        return self.page.inner_text(f".pane[data-arm={arm}] .text")

    def slot(self, name: str) -> str:
        return self.page.locator(f'.stage [data-slot="{name}"]').first.inner_text()

    def wait_for_phase(self, *phases: str, seconds: float = 60) -> None:
        """Of a race of the visitor's own: the recorded one goes on until that begins."""
        self.page.wait_for_function(
            "phases => { const { phase, recorded } = document.querySelector('.stage').dataset;"
            " return recorded === 'false' && phases.includes(phase); }",
            arg=list(phases),
            timeout=1000 * seconds,
        )

    def wait_for_notice(self, text: str, seconds: float = 30) -> None:
        self.page.wait_for_selector(f'#notice:has-text("{text}")', timeout=1000 * seconds)

    def wait_for_text(self) -> None:
        """Of a race of the visitor's own."""
        self.page.wait_for_function(
            "document.querySelector('.stage').dataset.recorded === 'false'"
            " && [...document.querySelectorAll('.pane .text')]"
            ".every(pane => !pane.checkVisibility() || pane.textContent.length > 20)"
        )

    def hover(self, plot: str, across: float) -> str:
        """The tip at ``across`` (0..1) of the plot's width."""
        canvas = self.page.locator(f"#{plot} .plot-canvas")
        self.page.locator(f"#{plot} .plot-area").scroll_into_view_if_needed()
        self.page.wait_for_selector(f"#{plot} .plot:not([data-due])")  # it is drawn once it is seen
        box = canvas.bounding_box()
        assert box is not None
        for nudge in (0, 3):  # plotly answers to movement
            self.page.mouse.move(box["x"] + 40 + across * (box["width"] - 50) + nudge, box["y"] + box["height"] / 2)
        self.page.wait_for_selector(f"#{plot} .plot-tip:not([hidden])")
        return self.page.inner_text(f"#{plot} .plot-tip")
