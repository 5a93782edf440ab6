"""The page's own components: ``gr.HTML`` with a static template, filled by the scripts in ``assets``.

No value is ever put into a template: scripts write text with ``textContent`` only, so what a model or a visitor wrote
is shown, never interpreted. They are functions and not subclasses because gradio writes a ``.pyi`` file next to the
source of every subclass.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import plotly

from ..support.files import ASSETS
from .early import SCRIPTS as EARLY_SCRIPTS

PLOTLY = Path(plotly.__file__).resolve().parent / "package_data" / "plotly.min.js"
_NAMES = ("parts", "slots", "save", "controls", "history", "rows", "heat", "stage", "preview", "plot", "pareto", "lab")
_SCRIPTS = {name: ASSETS / f"{name}.js" for name in _NAMES}

_NOTHING = "<span hidden></span>"

Outputs = dict[str, Any]  # new values by component name

# Of every event that waits for the worker. The worker has a queue of its own, so gradio's must let every visitor
# through, to learn their place in it. Progress is shown on nothing: where it is only hidden, every output still counts
# the time at each frame of the browser, and that work is taken from the race.
EVENT: dict[str, Any] = {
    "api_visibility": "private",
    "show_progress": "hidden",
    "show_progress_on": [],
    "concurrency_limit": None,
}


# Of every event that the browser answers alone.
AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def serve_scripts() -> None:
    """Lets the page's own server hand out its scripts and plotly's, so that no other host is asked."""
    gr.set_static_paths([PLOTLY, *{*_SCRIPTS.values(), *EARLY_SCRIPTS}])


def in_browser(event: Any, js: str, outputs: list[Any], inputs: Any = None) -> None:
    """``js`` takes the values of ``inputs`` and gives an array, one value for each of ``outputs``."""
    event(None, inputs, outputs, js=js, **AT_ONCE)


def in_order(names: Sequence[str], outputs: Outputs) -> list[Any]:
    """``outputs`` as a handler returns them: one for each of ``names``, nothing for what did not change."""
    return [outputs.get(name, gr.skip()) for name in names]


def notice(**options: Any) -> gr.HTML:
    """One sentence and, while something loads, a bar. Value: ``{text, tone, progress}``, progress 0..1 or None."""
    template = (
        '<div class="notice" role="status" aria-live="polite"><p data-slot="text"></p>'
        '<div class="bar" aria-hidden="true"><i></i></div></div>'
    )
    return _scripted(template, "notice", _SCRIPTS["slots"], **options)


def sentence(text: str, tone: str = "quiet", progress: float | None = None) -> dict[str, Any]:
    """The value of a notice."""
    return {"text": text, "tone": tone, "progress": progress}


def ready(model: str, precision: str) -> dict[str, Any]:
    """The notice of a loaded model."""
    return sentence(f"{model} ({precision}) is ready.")


def facts(**options: Any) -> gr.HTML:
    """A list of names and values. Value: ``[[name, value], ...]``."""
    return _scripted('<dl class="facts"></dl>', "facts", _SCRIPTS["slots"], **options)


def race_stage(value: dict[str, Any], **options: Any) -> gr.HTML:
    """The race. Value: see ``race.stage.stage``; with ``replay`` a recorded one, which the browser plays."""
    scripts = ("slots", "controls", "history", "rows", "heat", "stage")
    return _scripted(_template("stage"), "stage", *(_SCRIPTS[name] for name in scripts), value=value, **options)


def preview(value: dict[str, Any], **options: Any) -> gr.HTML:
    """What the settings are expected to come to. Value: see ``race.expected.expectations``."""
    scripts = ("slots", "controls", "preview")
    return _scripted(_template("preview"), "previewOf", *(_SCRIPTS[name] for name in scripts), value=value, **options)


def factors(**options: Any) -> gr.HTML:
    """A factor on each layer, set from the rows beside the heatmap. Value: the factors; [] before there are any."""
    scripts = ("controls", "rows")
    component = _scripted(_NOTHING, "factorList", *(_SCRIPTS[name] for name in scripts), value=[], **options)
    component.js_on_load = "window.tda.factorList(element, props, watch);"  # gradio's own value: a race has it as input
    return component


def applier(**options: Any) -> gr.HTML:
    """Nothing to see: its ``change`` event is sent by scripts that have values for other components."""
    component = _scripted(_NOTHING, "applier", _SCRIPTS["controls"], **options)
    component.js_on_load = "window.tda.applier(trigger);"
    return component


def courier(**options: Any) -> gr.HTML:
    """Nothing to see: brings values to the page's own components past gradio, for which each output of a handler costs
    a millisecond a frame, taken from whatever is measured meanwhile. Value: see ``Courier``; a ``click`` is sent
    whenever ``running`` is another one.
    """
    component = _scripted(_NOTHING, "courier", elem_classes=["unseen"], **options)
    component.js_on_load = "window.tda.courier(props, watch, trigger);"
    return component


class Courier:
    """Makes the values of a ``courier`` of what changed on the page, frame by frame.

    ``{"run": a name, "running": whether there is more to come, "parts": {element id: JSON}, "wish": JSON of
    {control: value}}``: all that was brought so far, since a browser that is busy passes values over. As text each
    costs both sides little that is as it was.
    """

    def __init__(self, parts: dict[str, Any]) -> None:
        self._ids = {name: part.elem_id for name, part in parts.items()}
        self._run, self._running = secrets.token_hex(4), False
        self._brought: dict[str, str] = {}
        self._wish = ""

    def bring(self, outputs: Outputs) -> dict[str, Any]:
        """The value that has ``outputs``, new values by component name; those of controls gradio is asked to set."""
        wish = {name: value for name, value in outputs.items() if "." in name}
        shown = {name: value for name, value in outputs.items() if name not in wish and name != "running"}
        self._running = outputs.get("running", self._running)
        self._brought |= {self._ids[name]: json.dumps(value) for name, value in shown.items()}
        self._wish = json.dumps(wish) if wish else self._wish
        return {"run": self._run, "running": self._running, "parts": dict(self._brought), "wish": self._wish}


def finding(**options: Any) -> gr.HTML:
    """What an experiment found, and its files. Value: see ``lab.runs.finding_value``; None shows nothing."""
    template = (
        '<section class="finding" aria-live="polite" hidden><ol class="finding-checks"></ol>'
        '<ul class="finding-notes"></ul><div class="finding-files"><span data-slot="files"></span></div></section>'
    )
    return _scripted(template, "finding", *(_SCRIPTS[name] for name in ("slots", "save", "lab")), **options)


def pareto_plot(value: dict[str, Any] | None, **options: Any) -> gr.HTML:
    """Quality against cost. Value: see ``pareto.figures.plot_value``; None is the empty state."""
    scripts = (_SCRIPTS[name] for name in ("slots", "save", "plot", "pareto"))
    return _scripted(_template("pareto"), "pareto", *scripts, value=value, **options)


def plot_layout(font_size: int = 11, **overrides: Any) -> dict[str, Any]:
    """What the layouts of all plotly figures share: transparent, without a legend, in the page's font and colours."""
    return {
        "template": "none",
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "var(--plot-font)", "size": font_size, "color": "var(--muted)"},
        "hovermode": "closest",
        **overrides,
    }


def saver(**options: Any) -> gr.HTML:
    """Nothing to see: every value ``{name, type, text}`` it is given is saved as a file by the browser."""
    return _scripted(_NOTHING, "saver", _SCRIPTS["save"], **options)


def live_plot(
    title: str, subtitle: str, ghost: str, *, kind: str, views: tuple[str, ...] = (), scale: str = "", **options: Any
) -> gr.HTML:
    """One plotly plot that stays in the page and is redrawn in place. Value: see ``figures``; None is the empty state.

    ``ghost`` says what will be seen there; a value ``{ghost}`` says something else in its place. ``views`` names the
    figures a reader can switch between; ``scale`` is the legend's HTML.
    """
    template = f"""
<figure class="plot plot-{kind}" data-empty="true">
  <figcaption>
    <h3>{escape(title)}</h3>
    <p>{escape(subtitle)}</p>
    <div class="plot-tools">{_radios(kind, views) if views else ""}{scale}</div>
  </figcaption>
  <div class="plot-area"><div class="plot-canvas" role="img" aria-label="{escape(title)}"></div>
    <p class="plot-ghost">{escape(ghost)}</p><div class="plot-tip" hidden></div></div>
</figure>"""
    return _scripted(template, "plot", _SCRIPTS["plot"], **options)


def _scripted(template: str, mount: str, *scripts: Path, value: Any = None, **options: Any) -> gr.HTML:
    files = (_SCRIPTS["parts"], *scripts)
    return gr.HTML(
        value,
        html_template=template,
        js_on_load=f"window.tda.mount({json.dumps([mount, options.get('elem_id')])}, element, props, watch);",
        head="".join(f'<script src="gradio_api/file={script}"></script>' for script in files),
        apply_default_css=False,
        **options,
    )


def _template(name: str) -> str:
    return (ASSETS / f"{name}.html").read_text(encoding="utf-8")


def _radios(group: str, views: tuple[str, ...]) -> str:
    choices = "".join(
        f'<label><input class="views-choice" type="radio" name="view-{group}" value="{view}"'
        f"{' checked' if view == views[0] else ''}>{view}</label>"
        for view in views
    )
    return f'<fieldset class="views"><legend class="sr-only">What the colour shows</legend>{choices}</fieldset>'
