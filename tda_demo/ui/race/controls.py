"""What a visitor sets: the prompt, the method and its dial in a line each, and in a sheet above the race the rest.

A link sets the same controls by its query parameters; ``assets/link.js`` writes such links.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from ...support.files import ASSETS, DATA
from ..models import EMBEDDED
from ..requests import AUTOMATIC, NO_RIVAL, Factors, Limits, Offers, RunRequest, parse_request
from ..widgets import AT_ONCE, Outputs, applier, in_browser, notice, preview
from .method_controls import Components, MethodControls, settings

_STANDARD = RunRequest(prompt="")


def defaults() -> dict[str, Any]:
    """The value of every control, by component name; those with a factor a layer, which follow its depth, are not."""
    of_methods = {setting.key: setting.default for setting in settings() if setting.kind != Factors}
    return {
        "method": _STANDARD.method.name,
        "rival": NO_RIVAL,
        "by": "setting",
        "kl": 0.3,
        "mlp_percent": 70,
        "model": EMBEDDED,
        "precision": AUTOMATIC,
        "max_new_tokens": _STANDARD.max_new_tokens,
        "seed": _STANDARD.seed,
        "temperature": _STANDARD.temperature,
        "top_p": _STANDARD.top_p,
        **of_methods,
    }


def layered() -> list[str]:
    """Component names of the settings that are one factor a layer."""
    return [setting.key for setting in settings() if setting.kind == Factors]


def controls(offers: Offers, limits: Limits, expected: dict[str, Any], prompt: str) -> Components:
    """The upper part of the tab, by component name. ``prompt`` is the one already filled in."""
    values = defaults()
    method = MethodControls(limits, values)
    parts = method.parts
    with gr.Row(elem_id="ask"):
        parts |= _prompt(prompt)
    with gr.Row(elem_id="said"):
        parts["notice"] = notice(elem_id="notice")
        parts["model_notice"] = notice(elem_id="model-notice")
        parts["link"] = gr.Button("Copy link", size="sm", elem_id="copy-link", scale=0, min_width=0)
        gr.Button("Settings", size="sm", elem_id="open-sheet", scale=0, min_width=0)
    with gr.Row(elem_id="dial-row"):
        method.choose()
        # With what the controls are set to at first: later changes are told as they come.
        parts["preview"] = preview(
            {**expected, "controls": {**values, **{name: [] for name in layered()}}}, elem_id="preview"
        )
    with gr.Column(elem_id="sheet"):
        parts |= _model(offers, values)
        with gr.Column(elem_id="method-settings", min_width=0):
            method.more()
        with gr.Column(elem_id="budget", min_width=0):
            method.budget()
        with gr.Column(elem_id="decoding", min_width=0):
            parts |= _decoding(limits, values)
        parts["reset"] = gr.Button("Reset all settings", size="sm", elem_id="reset", scale=0, min_width=130)
    parts["applier"] = applier(elem_id="applier")
    method.wire()
    _wire_buttons(parts, values)
    return parts


def _prompt(prompt: str) -> Components:
    text = gr.Textbox(
        prompt,
        label="Prompt",
        show_label=False,
        placeholder=prompt,
        lines=1,  # with more, Enter would make a new line
        max_lines=10,
        elem_id="prompt",
    )
    with gr.Row(elem_id="examples"):
        for example in json.loads((DATA / "prompts.json").read_text(encoding="utf-8")):
            chosen = gr.Button(example["label"], size="sm", min_width=0)
            in_browser(chosen.click, f"() => window.tda.race({json.dumps(example['prompt'])})", [text])
    return {
        "prompt": text,
        "run": gr.Button("Race", variant="primary", elem_id="run", min_width=84, scale=0),
        "stop": gr.Button("Stop", interactive=False, elem_id="stop", min_width=72, scale=0),
    }


def _model(offers: Offers, values: dict[str, Any]) -> Components:
    with gr.Row(elem_id="model-row"):
        model = gr.Dropdown(
            offers.choices,
            value=values["model"],
            label="Model",
            info=offers.hint,
            allow_custom_value=offers.any_model,
            elem_id="model",
            min_width=220,
            scale=3,
        )
        precision = gr.Dropdown(
            list(offers.precisions),
            value=values["precision"],
            label="Precision",
            elem_id="precision",
            min_width=110,
            scale=1,
        )
    return {"model": model, "precision": precision}


def _decoding(limits: Limits, values: dict[str, Any]) -> Components:
    with gr.Row():
        max_new_tokens = gr.Number(
            values["max_new_tokens"],
            label=f"New tokens, 1 to {limits.max_new_tokens}",
            precision=0,
            min_width=120,
            elem_id="max-new-tokens",
        )
        seed = gr.Number(values["seed"], label="Seed", precision=0, min_width=120, elem_id="seed")
    temperature = gr.Slider(
        *limits.temperature,
        values["temperature"],
        step=0.05,
        label="Temperature (0 is greedy)",
        elem_id="temperature",
    )
    top_p = gr.Slider(0.05, limits.top_p[1], values["top_p"], step=0.05, label="Top-p", elem_id="top-p")
    return {"max_new_tokens": max_new_tokens, "seed": seed, "temperature": temperature, "top_p": top_p}


def _wire_buttons(parts: Components, values: dict[str, Any]) -> None:
    """In the browser alone. Factors keep their number until another model is chosen."""
    of_layers = [parts[name] for name in layered()]
    rest = json.dumps(list(values.values()))
    in_browser(
        parts["reset"].click,
        f"(...factors) => [...factors.map((own) => (own || []).map(() => 1)), ...{rest}]",
        [*of_layers, *(parts[name] for name in values)],
        of_layers,
    )
    in_browser(parts["model"].input, f"() => {json.dumps([[] for _ in of_layers])}", of_layers)
    linked = ["prompt", *values, *layered()]
    script = (ASSETS / "link.js").read_text(encoding="utf-8")
    known = json.dumps({name: values.get(name) for name in linked})
    every = [parts[name] for name in linked]
    in_browser(parts["link"].click, f"(...values) => ({script})({known}, values)", [parts["notice"]], every)
    # Every change is told to the scripts, and what they wish comes back as a change.
    names = json.dumps(linked[1:])
    told = f"(...values) => window.tda.heard({names}, values)"
    gr.on([part.change for part in every[1:]], None, every[1:], None, js=told, **AT_ONCE)
    wished = f"(...values) => window.tda.controls.applied({names}, values)"
    in_browser(parts["applier"].change, wished, every[1:], every[1:])


def parse_link(offers: Offers, limits: Limits, parameters: Mapping[str, str]) -> Outputs:
    """The controls that a link sets, by component name; parameters that are none of the page's are left aside.

    Raises:
        UserError: a value is not one that a visitor could have set.
    """
    known = defaults()
    chosen = [parameters.get(name, known[name]) for name in ("method", "rival")]
    settings_of = {name: [setting for setting in settings() if setting.method.name == name] for name in chosen}
    plain = known.keys() - {setting.key for setting in settings()} | {"prompt"}
    given = {name: parameters[name] for name in plain if name in parameters}
    wished = [
        {setting.field.name: parameters[setting.key] for setting in settings_of[name] if setting.key in parameters}
        for name in chosen
    ]
    if not given and not any(wished):
        return {}
    wishes = {"prompt": "none", **given, "settings": wished[0], "rival_settings": wished[1]}
    request = parse_request(offers, **wishes, limits=limits)
    budget = request.budget
    return {
        **({"prompt": request.prompt} if "prompt" in given else {}),
        **({"kl": budget.most} if budget and budget.of == "kl" else {}),
        **({"mlp_percent": round(100 * budget.most, 6)} if budget and budget.of == "mlp_share" else {}),
        "method": request.method.name,
        "rival": request.rival.name if request.rival else NO_RIVAL,
        "by": given.get("by", known["by"]),
        "model": request.model or EMBEDDED,
        "precision": request.precision or AUTOMATIC,
        "max_new_tokens": request.max_new_tokens,
        "seed": request.seed,
        "temperature": request.temperature,
        "top_p": request.top_p,
        **{
            setting.key: setting.control_value(value)
            for method in filter(None, (request.method, request.rival))
            for setting in settings_of[method.name]
            if setting.key in parameters and (value := getattr(method, setting.field.name)) != ()
        },
    }
