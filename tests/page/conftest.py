"""The real page, on the real embedded model, in a real browser: one server for all tests of a process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import Visitor, launch, served_page
from playwright.sync_api import Browser, sync_playwright


@pytest.fixture(scope="session")
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

    def open_one(**options: Any) -> Visitor:
        visitors.append(Visitor(browser, address, **options))
        return visitors[-1]

    yield open_one
    for visitor in visitors:
        if not visitor.page.is_closed():
            visitor.page.close()
        assert visitor.complaints == []


@pytest.fixture
def visitor(open_page: Callable[..., Visitor]) -> Visitor:
    return open_page()
