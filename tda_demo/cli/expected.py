"""``expected``: what the page expects of settings before a race, measured on a model; the file it reads, if asked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..support.files import write_text
from ..support.progress import terminal_bar
from .arguments import Commands, add_model

_TRAINED = ("dejavu", "moefication")  # what would have to be trained first


def add(commands: Commands) -> None:
    expected = commands.add_parser("expected", help="measure what the page expects of settings before a race")
    expected.add_argument("--method", action="append", default=[], metavar="NAME", help="of it alone; repeatable")
    expected.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="write it there as JSON; with --method beside other methods' that are there already",
    )
    add_model(expected)
    expected.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..evaluate.expected import measure
    from ..methods import METHODS, method_named
    from ..model.loading import load_model
    from ..support.environment import use_threads

    chosen = [method_named(name).name for name in options.method] or [name for name in METHODS if name not in _TRAINED]
    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        told = measure(lm, chosen, report)
    for name, method in told["methods"].items():
        for curve in method["curves"]:
            print(f"{name}: {len(curve['values'])} values of {method['setting']}, {curve['others']}")
    if options.method and options.out.is_file():
        before = json.loads(options.out.read_text(encoding="utf-8"))
        told["methods"] = before["methods"] | told["methods"]
    write_text(options.out, json.dumps(told, separators=(",", ":")) + "\n")
    print(f"written to {options.out}")
