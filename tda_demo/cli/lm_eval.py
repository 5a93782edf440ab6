"""``lm-eval``: lm-evaluation-harness, with every method as a model of it."""

from __future__ import annotations

import argparse
import sys

from ..support.errors import UserError
from .arguments import Commands


def add(commands: Commands) -> None:
    # Every option is the harness's own, so none is ours: no argument begins with the prefix NUL.
    harness = commands.add_parser("lm-eval", help="run lm-evaluation-harness", prefix_chars="\0", add_help=False)
    harness.add_argument("arguments", nargs="*")
    harness.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise UserError("lm-evaluation-harness is not installed: pip install lm-eval==0.4.13.") from error
    from ..evaluate import harness  # noqa: F401 - registers the model `tda`

    before = sys.argv
    sys.argv = ["lm_eval", *options.arguments]  # the harness reads its arguments nowhere else
    try:
        cli_evaluate()
    finally:
        sys.argv = before
