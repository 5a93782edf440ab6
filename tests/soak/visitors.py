"""Races one after the other, by every method: what the page's memory does meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from served import Page

METHODS = ("tda", "griffin", "coreinfer", "sketch", "cats", "tt", "teal", "random", "magnitude", "prior")
_PROMPTS = ("Why is the sky blue?", "Write a short poem about rain.", "cat " * 200)


@dataclass(frozen=True)
class Memory:
    """Resident bytes: of the ``idle`` page, and after every race."""

    idle: int
    after: tuple[int, ...]
    refused: int


def run(page: Page, races: int) -> Memory:
    page.race()
    idle, after, refused = page.rss, [], 0
    for at in range(races):
        method = METHODS[at % len(METHODS)]
        _, status, _ = page.race(_PROMPTS[at % len(_PROMPTS)], method=method, max_new_tokens=24 + at % 40)
        refused += status != 200
        after.append(page.rss)
    return Memory(idle, tuple(after), refused)
