"""What several commands take, how they refuse what they do not, and how they print."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..model.precision import PRECISIONS, default_precision, in_words
from ..support.files import write_text

if TYPE_CHECKING:
    from ..methods import Method

TEXT = "documents separated by lines holding only ###, or .jsonl with a text (and a reference) a line"
Commands = Any  # argparse names the type of what add_subparsers returns only privately


class Parser(argparse.ArgumentParser):
    """An ``ArgumentParser``, its subcommands' ones too, that says what is wrong in one line instead of its usage."""

    def error(self, message: str) -> NoReturn:
        """Prints ``message`` on stderr and exits with code 2."""
        line = " ".join(message.split())  # an argument may hold line breaks
        self.exit(2, f"{self.prog}: {line} (for more: {self.prog} --help)\n")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which model, how it is held, and where it runs."""
    parser.add_argument("--model", metavar="M", help="a hub id, a folder or a .gguf file; default: the embedded model")
    defaults = f"{default_precision('cpu')} on a CPU, {default_precision('cuda')} on a GPU"
    parser.add_argument(
        "--precision",
        metavar="P",
        help=f"{in_words(list(PRECISIONS))}; default: {defaults}",
    )
    parser.add_argument("--device", metavar="D", help="cpu or cuda")
    add_threads(parser)


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, metavar="N", help="default: the cores this process may use")


def add_method(parser: argparse.ArgumentParser) -> None:
    """Which method, and its settings; ``methods.make_method`` reads them."""
    parser.add_argument("--method", default="tda", metavar="NAME", help="see `python -m tda_demo methods`; default tda")
    parser.add_argument(
        "--set", action="append", default=[], metavar="K=V", help="a setting, e.g. cett=0.2; repeatable"
    )


def add_preset(parser: argparse.ArgumentParser) -> None:
    """A preset of the method; ``chosen_method`` reads it."""
    parser.add_argument(
        "--preset", metavar="NAME", help="exact, default, aggressive or paper, under the settings given with --set"
    )


def chosen_method(name: str, preset: str | None, assignments: Sequence[str]) -> Method:
    """The method ``name`` at its ``preset``, if any, with settings like ``["cett=0.2"]``.

    Raises:
        UserError: there is no such method, preset or setting, or a value is out of its range.
    """
    from ..methods import make_method, method_named
    from ..methods.presets import preset_named
    from ..methods.settings import parse

    if preset is None:
        return make_method(name, assignments)
    kind = method_named(name)
    return dataclasses.replace(preset_named(kind, preset).of(kind), **parse(kind, assignments))


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="FILE", help="write the result there; - prints it")


def write_json(content: dict[str, Any] | list[dict[str, Any]], destination: str) -> None:
    """To the file ``destination``, or to stdout where it is "-"."""
    text = json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)
    if destination == "-":
        print(text)
    else:
        write_text(Path(destination), text + "\n")
