"""From the command line's wishes to a page that answers."""

from __future__ import annotations

import socket

import gradio as gr

from ..support.errors import UserError
from ..support.files import ASSETS
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
            head=f"<script>{(ASSETS / 'start.js').read_text(encoding='utf-8')}</script>",
            footer_links=["api"],
            run_history=False,
            ssr_mode=False,
            share=False,
            max_file_size=1,  # byte: gradio's upload route cannot be closed, and the page takes no files
        )
    except OSError as error:
        raise UserError("There is no free port to serve the page at: name one with --port.") from error


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
