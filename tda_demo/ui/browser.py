"""Events that the browser answers alone, without asking the server."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr


def in_browser(event: Any, js: str, outputs: list[Any], inputs: Any = None) -> None:
    """``js`` takes the values of ``inputs`` and gives an array, one value for each of ``outputs``."""
    event(None, inputs, outputs, js=js, queue=False, api_visibility="private", show_progress="hidden")


def setter(button: gr.Button, target: gr.components.Component, value: Any) -> None:
    """``button`` puts ``value`` into ``target``."""
    in_browser(button.click, f"() => {json.dumps(value)}", [target])
