"""Which method, and its settings: every control is built from the fields of the methods' dataclasses."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, Literal, get_args, get_origin, get_type_hints

import gradio as gr

from ...methods import METHODS, Method
from ...methods.presets import Preset, presets_of
from ...methods.settings import ordered_fields
from ..requests import NO_RIVAL, Factors, Layers, Limits
from ..widgets import factors, in_browser

# The field's names of settings in plain words.
LABELS = {
    "cett": "allowed error",
    "scale": "per-layer threshold",
    "online": "thresholds from this prompt",
    "exempt": "layers left dense",
    "exempt_first": "first layers left dense",
    "exempt_last": "last layers left dense",
    "keep": "neurons kept",
    "rest": "what is left out",
    "first": "dense tokens first",
    "refresh": "choose anew every",
    "prior": "weight of the average",
    "shape": "spread over layers",
}

Components = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One field of one method."""

    method: type[Method]
    field: dataclasses.Field[Any]
    kind: Any

    @property
    def key(self) -> str:
        """Its name among the page's components, and in a link."""
        return f"{self.method.name}.{self.field.name}"

    @property
    def is_dial(self) -> bool:
        return self.field.name == self.method.dial.setting

    @property
    def default(self) -> Any:
        """As its control holds it: of the method's default preset, where a rule has found one."""
        chosen = {preset.name: preset for preset in presets_of(self.method)}.get("default")
        return self.control_value(self.field.default if chosen is None else self.of(chosen))

    def of(self, preset: Preset) -> Any:
        """Its value in ``preset`` of its method."""
        return getattr(preset.of(self.method), self.field.name)

    @property
    def elem_id(self) -> str:
        return self.key.replace(".", "-").replace("_", "-")

    @property
    def label(self) -> str:
        """In plain words; the field's own is its name, which links, exports and the command line have."""
        return LABELS.get(self.field.name, self.field.name.replace("_", " "))

    @property
    def explanation(self) -> str:
        text: str = self.field.metadata["explanation"]
        own = f" ({self.field.name})" if self.field.name in LABELS else ""
        return f"{text[0].upper()}{text[1:]}{own}."

    def control_value(self, value: Any) -> Any:
        """A value as its control holds it."""
        if self.kind == Layers:
            return ", ".join(map(str, value))
        return list(value) if self.kind == Factors else value


def settings() -> Iterator[Setting]:
    """Every setting of every method."""
    for method in METHODS.values():
        kinds = get_type_hints(method)
        for field in ordered_fields(method):
            yield Setting(method, field, kinds[field.name])


class MethodControls:
    """The controls by component name in ``parts``, and the columns that are seen only for some choices.

    ``panels`` holds, for each such column, the choices it is for: {"method": "tda", "by": "setting"}, either or both. A
    rival's settings are the same controls that its method has when it is the one that is raced.
    """

    def __init__(self, limits: Limits, defaults: dict[str, Any]) -> None:
        self.limits = limits
        self.defaults = defaults
        self.parts: Components = {}
        self.panels: list[tuple[gr.Column, dict[str, str]]] = []
        self._presets: list[tuple[gr.Button, type[Method], Preset]] = []

    def choose(self) -> None:
        """One line: the method, what it races, its dial, presets."""
        self.parts["method"] = gr.Dropdown(
            [(kind.__name__, name) for name, kind in METHODS.items()],
            value=self.defaults["method"],
            label="Method",
            elem_id="method",
            min_width=110,
            scale=0,
        )
        self.parts["rival"] = gr.Dropdown(
            [("dense", NO_RIVAL), *((kind.__name__, name) for name, kind in METHODS.items())],
            value=self.defaults["rival"],
            label="Against",
            elem_id="rival",
            min_width=110,
            scale=0,
        )
        with gr.Column(elem_id="dials", min_width=0):
            for setting in settings():
                if setting.is_dial:
                    with self._panel(method=setting.method.name):
                        self.parts[setting.key] = _dial(setting)
                        self._choose_preset(setting.method)

    def budget(self) -> None:
        """What the dial may cost, measured on the model where no curve of it is shipped."""
        self.parts["by"] = gr.Radio(
            [("its dial", "setting"), ("a KL", "quality"), ("its bytes", "bytes")],
            value=self.defaults["by"],
            label="A method is set by",
            info="A budget is measured on the chosen model, which takes minutes where nothing is shipped for it.",
            elem_id="by",
        )
        with self._panel(by="quality"):
            self.parts["kl"] = gr.Slider(
                *self.limits.kl,
                self.defaults["kl"],
                step=0.01,
                label="KL at most, nats/token",
                info="Each method gets the setting that uses it up; 0 is exact.",
                elem_id="kl",
            )
        with self._panel(by="bytes"):
            self.parts["mlp_percent"] = gr.Slider(
                *self.limits.mlp_percent,
                self.defaults["mlp_percent"],
                step=1,
                label="MLP weight bytes at most, %",
                info="Of what a dense step reads: the same budget for whichever method is chosen.",
                elem_id="mlp-percent",
            )

    def more(self) -> None:
        """What else the methods can be told."""
        for name, kind in METHODS.items():
            others = [setting for setting in settings() if setting.method is kind and not setting.is_dial]
            with self._panel(method=name):
                _sentence(kind)
                for setting in others:
                    self.parts[setting.key] = _control(setting)
                if not others:
                    _html(f'<p class="about-method">{kind.__name__} has no settings but its dial.</p>')

    def _choose_preset(self, kind: type[Method]) -> None:
        with gr.Row(elem_classes="presets"):
            for preset in presets_of(kind):
                button = gr.Button(preset.name, size="sm", min_width=0)
                self._presets.append((button, kind, preset))

    def wire(self) -> None:
        """In the browser alone: shows the panels of what is chosen, and has buttons set what their presets are."""
        for button, kind, preset in self._presets:
            layered = [setting for setting in settings() if setting.method is kind and setting.kind != Factors]
            values = [setting.control_value(setting.of(preset)) for setting in layered]
            in_browser(button.click, f"() => {json.dumps(values)}", [self.parts[setting.key] for setting in layered])
        choices = [self.parts[name] for name in ("method", "rival", "by")]
        js = f"""(method, rival, by) => {{
            return {json.dumps([choice for _, choice in self.panels])}
                .map((on) => ({{
                    __type__: "update",
                    visible: [method, rival].includes(on.method ?? method) && (on.by ?? by) === by,
                    elem_classes: ["panel", on.method === rival ? "of-rival" : on.method ? "of-method" : "of-both"],
                }}));
        }}"""
        for choice in choices:
            in_browser(choice.change, js, [column for column, _ in self.panels], choices)

    def _panel(self, **choice: str) -> gr.Column:
        visible = all(self.defaults[name] == value for name, value in choice.items())
        column = gr.Column(visible=visible, elem_classes="panel", min_width=0)
        self.panels.append((column, choice))
        return column


def _sentence(kind: type[Method]) -> None:
    """What the method does."""
    text = escape((kind.__doc__ or "").strip().splitlines()[0])
    _html(f'<p class="about-method"><b>{escape(kind.__name__)}</b> {text}</p>')


def _html(content: str, **options: Any) -> None:
    gr.HTML(content, apply_default_css=False, js_on_load=None, **options)


def _dial(setting: Setting) -> gr.Slider:
    """The slider that matters most."""
    dial = setting.method.dial
    return gr.Slider(
        min(dial.dense, dial.sparsest),
        max(dial.dense, dial.sparsest),
        setting.default,
        step=1 if setting.kind is int else 0.01,
        label=setting.label,
        info=setting.explanation,
        elem_id=setting.elem_id,
        buttons=[],
    )


def _control(setting: Setting) -> Any:
    within = setting.field.metadata["within"]
    options: dict[str, Any] = {"label": setting.label, "info": setting.explanation, "elem_id": setting.elem_id}
    if setting.kind == Factors:
        return factors(elem_id=setting.elem_id)
    if setting.kind == Layers:
        return gr.Textbox(setting.default, placeholder="none; for example 0, 27-29", **options)
    if get_origin(setting.kind) is Literal:
        return gr.Radio(list(get_args(setting.kind)), value=setting.default, **options)
    if setting.kind is bool:
        return gr.Checkbox(setting.default, **options)
    if setting.kind is float and within is not None and math.isfinite(within.high):
        return gr.Slider(within.low, within.high, setting.default, step=0.01, **options)
    return gr.Number(setting.default, precision=0 if setting.kind is int else None, **options)
