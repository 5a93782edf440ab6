"""What a visitor sets: the prompt, the threshold, the model, and behind two accordions the rest."""

from __future__ import annotations

import json
from typing import Any

import gradio as gr

from ..components import ASSETS, equaliser, notice
from ..limits import Limits, RunRequest
from ..offers import AUTOMATIC, EMBEDDED, Offers

CALIBRATED, ONLINE = "calibrated offline", "from this prompt"
PRESETS = {"exact": 0.0, "mild": 0.1, "paper": 0.2, "aggressive": 0.4}
_STANDARD = RunRequest(prompt="")
DEFAULTS: dict[str, Any] = {
    "cett": _STANDARD.cett,
    "model": EMBEDDED,
    "precision": AUTOMATIC,
    "max_new_tokens": _STANDARD.max_new_tokens,
    "seed": _STANDARD.seed,
    "temperature": _STANDARD.temperature,
    "top_p": _STANDARD.top_p,
    "online": CALIBRATED,
    "weighted": _STANDARD.weighted,
    "exempt": "",
}

Components = dict[str, Any]


def controls(offers: Offers, limits: Limits) -> Components:
    """The upper part of the page, by component name."""
    parts: Components = {}
    with gr.Row(elem_id="controls"):
        with gr.Column(scale=3, min_width=320):
            parts |= _prompt()
        with gr.Column(scale=2, min_width=300):
            parts |= _threshold(limits)
            parts |= _model(offers)
    with gr.Row(elem_id="more"):
        with gr.Accordion("Per-layer scaling", open=False, elem_id="scaling"):
            parts["scale"] = equaliser(elem_id="equaliser")
        with gr.Accordion("Decoding and method", open=False, elem_id="decoding"):
            parts |= _decoding(limits)
            parts |= _method()
    _wire_buttons(parts)
    return parts


def _prompt() -> Components:
    prompt = gr.Textbox(
        label="Prompt",
        placeholder="Ask something. Enter runs, Shift+Enter makes a new line.",
        lines=1,  # with more, Enter would make a new line
        max_lines=10,
        elem_id="prompt",
    )
    with gr.Row(elem_id="examples"):
        for example in json.loads((ASSETS / "examples.json").read_text(encoding="utf-8")):
            _setter(gr.Button(example["label"], size="sm", min_width=40), prompt, example["prompt"])
    with gr.Row(elem_id="actions"):
        return {
            "prompt": prompt,
            "run": gr.Button("Run the race", variant="primary", elem_id="run", min_width=140, scale=0),
            "stop": gr.Button("Stop", interactive=False, elem_id="stop", min_width=90, scale=0),
            "notice": notice(elem_id="notice"),
        }


def _threshold(limits: Limits) -> Components:
    cett = gr.Slider(
        *limits.cett,
        DEFAULTS["cett"],
        step=0.01,
        label="CETT target",
        info="How much of each layer's output may be lost: 0 keeps every neuron.",
        elem_id="cett",
    )
    with gr.Row(elem_id="presets"):
        for name, value in PRESETS.items():
            _setter(gr.Button(f"{name} {value:g}", size="sm", min_width=60), cett, value)
    return {"cett": cett}


def _model(offers: Offers) -> Components:
    with gr.Row(elem_id="model-row"):
        model = gr.Dropdown(
            offers.choices,
            value=DEFAULTS["model"],
            label="Model",
            info=offers.hint,
            allow_custom_value=offers.any_model,
            elem_id="model",
            min_width=190,
            scale=3,
        )
        precision = gr.Dropdown(
            list(offers.precisions),
            value=DEFAULTS["precision"],
            label="Precision",
            elem_id="precision",
            min_width=110,
            scale=2,
        )
    with gr.Row(elem_id="model-foot"):
        return {
            "model": model,
            "precision": precision,
            "model_notice": notice(elem_id="model-notice"),
            "reset": gr.Button("Reset all settings", size="sm", elem_id="reset", scale=0, min_width=130),
        }


def _decoding(limits: Limits) -> Components:
    with gr.Row():
        max_new_tokens = gr.Number(
            DEFAULTS["max_new_tokens"],
            label=f"New tokens, 1 to {limits.max_new_tokens}",
            precision=0,
            min_width=120,
            elem_id="max-new-tokens",
        )
        seed = gr.Number(DEFAULTS["seed"], label="Seed", precision=0, min_width=120, elem_id="seed")
    temperature = gr.Slider(
        *limits.temperature,
        DEFAULTS["temperature"],
        step=0.05,
        label="Temperature (0 is greedy)",
        elem_id="temperature",
    )
    top_p = gr.Slider(0.05, limits.top_p[1], DEFAULTS["top_p"], step=0.05, label="Top-p", elem_id="top-p")
    return {"max_new_tokens": max_new_tokens, "seed": seed, "temperature": temperature, "top_p": top_p}


def _method() -> Components:
    return {
        "online": gr.Radio([CALIBRATED, ONLINE], value=DEFAULTS["online"], label="Thresholds", elem_id="thresholds"),
        "weighted": gr.Checkbox(
            DEFAULTS["weighted"],
            label="Weight each neuron's score by the norm of its output column",
            elem_id="weighted",
        ),
        "exempt": gr.Textbox(label="Layers kept dense", placeholder="none; for example 0, 27-29", elem_id="exempt"),
    }


def _wire_buttons(parts: Components) -> None:
    """Resets, in the browser alone. The equaliser keeps its number of sliders until another model is chosen."""
    values = json.dumps(list(DEFAULTS.values()))
    _in_browser(
        parts["reset"].click,
        f"(scale) => [(scale || []).map(() => 1), ...{values}]",
        [parts["scale"], *(parts[name] for name in DEFAULTS)],
        parts["scale"],
    )
    _in_browser(parts["model"].input, "() => []", [parts["scale"]])


def _setter(button: gr.Button, target: gr.components.Component, value: Any) -> None:
    _in_browser(button.click, f"() => {json.dumps(value)}", [target])


def _in_browser(event: Any, js: str, outputs: list[Any], inputs: Any = None) -> None:
    event(None, inputs, outputs, js=js, queue=False, api_visibility="private", show_progress="hidden")
