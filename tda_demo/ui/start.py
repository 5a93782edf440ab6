"""From the command line's wishes to a page that answers."""

from __future__ import annotations

import gradio as gr

from .components import ASSETS
from .layout import build
from .offers import Offers
from .service import Service
from .theme import theme


def make_page(allow_any_model: bool = False) -> gr.Blocks:
    """The page, with its model being loaded beside it."""
    service = Service(Offers.here(allow_any_model))
    service.preload()
    return build(service)


def launch(page: gr.Blocks, host: str | None = None, port: int | None = None) -> None:
    """Serves ``page`` until interrupted. Nothing it shows comes from another host."""
    page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css_paths=sorted(ASSETS.glob("*.css")),
        head=f"<script>{(ASSETS / 'start.js').read_text(encoding='utf-8')}</script>",
        footer_links=["api"],
        run_history=False,
        ssr_mode=False,
        share=False,
        max_file_size=1,  # byte: gradio's upload route cannot be closed, and the page takes no files
    )
