"""The menus by keyboard: passed by Tab they stay closed, and what is typed into one chooses."""

from __future__ import annotations

from collections.abc import Callable

from browser import Visitor


def test_menus_passed_by_tab_are_closed_again(open_page: Callable[..., Visitor]) -> None:
    page = open_page().page
    page.locator("#open-sheet").focus()
    for menu in ("Method", "Against"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.ariaLabel") == menu
        page.locator(".options").first.wait_for()  # open while one is in it
    page.keyboard.press("Tab")
    page.wait_for_function("!document.querySelector('.options')")


def test_what_is_typed_into_a_menu_chooses(open_page: Callable[..., Visitor]) -> None:
    page = open_page().page
    method = page.locator("#method input")
    for typed, chosen in (("teal", "TEAL"), ("griff", "GRIFFIN")):
        method.click()
        page.keyboard.type(typed)
        page.locator(".options li").get_by_text(chosen).wait_for()
        page.keyboard.press("Enter")
        page.wait_for_function("name => document.querySelector('#method input').value === name", arg=chosen)


def test_the_settings_lie_over_everything_else(open_page: Callable[..., Visitor]) -> None:
    visitor = open_page(width=390)
    visitor.open_settings()
    label = visitor.page.locator("#method span").first.bounding_box()
    assert label is not None
    middle = [label["x"] + label["width"] / 2, label["y"] + label["height"] / 2]
    assert visitor.page.evaluate("([x, y]) => Boolean(document.elementFromPoint(x, y).closest('#sheet'))", middle)
