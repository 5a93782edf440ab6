"""The page: its theme, its masthead and tabs, each in a folder of its own, and the server it is launched on."""

from __future__ import annotations

import socket

import gradio as gr
from starlette.middleware import Middleware

from ..support.errors import UserError
from ..support.files import ASSETS
from . import lab, pareto, race
from .early import EarlyStage
from .presence import Presence
from .requests import Offers
from .service import Service
from .widgets import PLOTLY, serve_scripts

TITLE = "TDA race"
_HEADER = f'<header class="masthead"><h1>{TITLE}</h1></header>'

_SANS = ("-apple-system", "BlinkMacSystemFont", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")

# Name of the theme variable: light value, dark value. The variables on the right are page.css's.
_COLOURS = {
    "body_background_fill": ("#faf9f6", "#14161a"),
    "background_fill_primary": ("#ffffff", "#1b1e24"),
    "background_fill_secondary": ("#faf9f6", "#14161a"),
    "body_text_color": ("#1d2126", "#e9e7e2"),
    "body_text_color_subdued": ("#5c6470", "#a3a9b3"),
    "block_background_fill": ("transparent", "transparent"),
    "block_label_background_fill": ("transparent", "transparent"),
    "block_label_text_color": ("#1d2126", "#e9e7e2"),
    "block_title_text_color": ("#1d2126", "#e9e7e2"),
    "block_info_text_color": ("#5c6470", "#a3a9b3"),
    "border_color_primary": ("#d9d6cf", "#363b44"),
    "border_color_accent": ("#b45309", "#f2a33a"),
    "input_background_fill": ("#ffffff", "#1b1e24"),
    "input_background_fill_focus": ("#ffffff", "#1b1e24"),
    "input_border_color": ("#8b8f96", "#6a717d"),
    "input_border_color_focus": ("#b45309", "#f2a33a"),
    "input_placeholder_color": ("#6b727d", "#949ba6"),
    "slider_color": ("#b45309", "#f2a33a"),
    "color_accent_soft": ("#fbf0e2", "#33281a"),
    "loader_color": ("#b45309", "#f2a33a"),
    "checkbox_background_color": ("#ffffff", "#1b1e24"),
    "checkbox_background_color_selected": ("#b45309", "#c9790f"),
    "checkbox_border_color": ("#8b8f96", "#6a717d"),
    "checkbox_border_color_focus": ("#b45309", "#f2a33a"),
    "checkbox_border_color_selected": ("#b45309", "#f2a33a"),
    "checkbox_label_background_fill": ("transparent", "transparent"),
    "checkbox_label_background_fill_hover": ("transparent", "transparent"),
    "checkbox_label_background_fill_selected": ("transparent", "transparent"),
    "checkbox_label_border_color": ("transparent", "transparent"),
    "checkbox_label_text_color": ("#1d2126", "#e9e7e2"),
    "checkbox_label_text_color_selected": ("#1d2126", "#e9e7e2"),
    "button_primary_background_fill": ("#1d2126", "#e9e7e2"),
    "button_primary_background_fill_hover": ("#3a414b", "#ffffff"),
    "button_primary_border_color": ("#1d2126", "#e9e7e2"),
    "button_primary_border_color_hover": ("#3a414b", "#ffffff"),
    "button_primary_text_color": ("#ffffff", "#14161a"),
    "button_secondary_background_fill": ("transparent", "transparent"),
    "button_secondary_background_fill_hover": ("#efece5", "#262a31"),
    "button_secondary_border_color": ("#8b8f96", "#6a717d"),
    "button_secondary_border_color_hover": ("#1d2126", "#e9e7e2"),
    "button_secondary_text_color": ("#1d2126", "#e9e7e2"),
}
_SHAPES = {
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_shadow": "none",
    "block_label_border_width": "0px",
    "block_label_padding": "0 0 4px 0",
    "block_title_text_weight": "600",
    "block_title_text_size": "14px",
    "block_label_text_size": "14px",
    "block_info_text_size": "13px",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_radius": "4px",
    "block_radius": "4px",
    "container_radius": "4px",
    "button_large_radius": "4px",
    "button_small_radius": "4px",
    "button_medium_radius": "4px",
    "button_border_width": "1px",
    "checkbox_label_padding": "4px 8px 4px 0",
    "checkbox_label_shadow": "none",
    "checkbox_shadow": "none",
    "layout_gap": "14px",
    "form_gap_width": "0px",
    "panel_border_width": "0px",
}


def theme() -> gr.themes.Base:
    """Gradio's own controls in the page's colours. The page's components take theirs from ``assets/page.css``."""
    colours = {name: light for name, (light, _) in _COLOURS.items()}
    dark = {f"{name}_dark": value for name, (_, value) in _COLOURS.items()}
    return gr.themes.Base(font=_SANS, font_mono=_MONO).set(**colours, **dark, **_SHAPES)


def build_page(service: Service) -> gr.Blocks:
    """The whole page over ``service``."""
    serve_scripts()
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.HTML(_HEADER, apply_default_css=False, js_on_load=None, elem_id="masthead")
        with gr.Tabs(elem_id="tabs"):
            for tab in (race, pareto, lab):
                with gr.Tab(tab.TITLE, id=tab.ID, elem_id=f"tab-{tab.ID}"):
                    tab.build(page, service)
        page.unload(service.leave)
    return page


def make_page(allow_any_model: bool = False) -> gr.Blocks:
    """The page, with its model being loaded beside it."""
    service = Service(Offers.here(allow_any_model))
    service.preload()
    return build_page(service)


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Serves ``page`` until interrupted. Nothing it shows comes from another host.

    Raises:
        UserError: nothing can be served at ``host`` and ``port``, or without a port at any that gradio tries.
    """
    _check_address(host, port)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            theme=theme(),
            css_paths=sorted(ASSETS.glob("*.css")),
            head=_head(),
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            share=False,
            app_kwargs={"middleware": [Middleware(Presence), Middleware(EarlyStage)]},
        )
    except OSError as error:
        raise UserError("There is no free port to serve the page at: name one with --port.") from error


def _head() -> str:
    scripts = "".join((ASSETS / name).read_text(encoding="utf-8") for name in ("start.js", "menus.js"))
    return f'<meta name="tda-plotly" content="gradio_api/file={PLOTLY}"><script>{scripts}</script>'


def _check_address(host: str | None, port: int | None) -> None:
    """Tries what gradio would, which does not say why it fails. Without a port, whether there is such a host.

    Raises:
        UserError: nothing can be served there.
    """
    if port is not None and not 1 <= port <= 65535:
        raise UserError(f"{port} is not a port: use a number from 1 to 65535.")
    name = (host or "127.0.0.1").strip("[]")
    try:
        family, *_, address = socket.getaddrinfo(name, port or 0, type=socket.SOCK_STREAM)[0]
        socket.create_server(address[:2], family=family).close()
    except OSError as error:
        place = name if port is None else f"port {port} of {name}"
        raise UserError(f"The page cannot be served at {place}: {error.strerror or error}.") from error
