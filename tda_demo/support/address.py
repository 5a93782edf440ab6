"""Where the page is to be served, as gradio's environment variables say: read before gradio, which fails on them."""

from __future__ import annotations

import os

from .errors import UserError


def environment_address() -> tuple[str | None, int | None]:
    """Host and port of ``GRADIO_SERVER_NAME`` and ``GRADIO_SERVER_PORT``; None where one is not set.

    Raises:
        UserError: the port is not a number from 1 to 65535.
    """
    host, port = (os.environ.get(f"GRADIO_SERVER_{name}") or None for name in ("NAME", "PORT"))
    if port is None:
        return host, None
    if not (port.isascii() and port.isdigit() and 1 <= int(port[:6]) <= 65535):
        raise UserError(f"GRADIO_SERVER_PORT is '{port[:20]}': set it to a number from 1 to 65535, or unset it.")
    return host, int(port)
