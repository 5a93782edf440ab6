"""The page: ``python app.py [--port N] [--host H] [--allow-any-model] [--threads N]``."""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from tda_demo.cli.arguments import Parser
from tda_demo.support.address import environment_address
from tda_demo.support.errors import UserError

parser = Parser(description="A dense decoder and the same model under TDA, racing on a web page.")
parser.add_argument("--port", type=int, default=None, help="default: the first free one from 7860")
parser.add_argument("--host", default=None, help="default: 127.0.0.1; 0.0.0.0 lets other machines in")
parser.add_argument("--allow-any-model", action="store_true", help="visitors may name any hub id or local path")
parser.add_argument("--threads", type=int, default=None, help="default: the cores this process may use")
options = parser.parse_args(None if __name__ == "__main__" else [])  # imported, the arguments are someone else's
if options.threads is not None:
    os.environ["OMP_NUM_THREADS"] = str(max(1, options.threads))  # read when torch is loaded, beside the page
try:
    named_host, named_port = environment_address()
except UserError as error:
    parser.error(str(error))

from tda_demo.ui.page import launch, make_page  # noqa: E402 - gradio is imported after its variables are checked

demo = make_page(options.allow_any_model)

if __name__ == "__main__":
    try:
        launch(demo, host=options.host or named_host, port=options.port or named_port)
    except UserError as error:
        parser.error(str(error))
