"""``presets``: settings found by their rule on a model, with what each costs and gains."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from ..support.files import write_text
from ..support.progress import terminal_bar
from .arguments import Commands, add_model, write_json


def add(commands: Commands) -> None:
    presets = commands.add_parser("presets", help="find settings by the rule that chose the page's, on a model")
    presets.add_argument(
        "--method", action="append", default=[], metavar="NAME", help="of this method; repeatable; default: all"
    )
    presets.add_argument("--out", type=Path, metavar="FILE", help="write them there, as data/presets.json holds them")
    presets.add_argument("--candidates", metavar="FILE", help="write everything that was tried there as JSON")
    add_model(presets)
    presets.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..evaluate.presets import find_presets
    from ..methods import METHODS, method_named
    from ..model.loading import load_model
    from ..support.environment import use_threads

    names = [method_named(name).name for name in options.method] or list(METHODS)
    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        found, candidates = find_presets(lm, names, report)
    if options.out:
        write_text(options.out, found.text())
    if options.candidates:
        write_json({name: [asdict(row) for row in rows] for name, rows in candidates.items()}, options.candidates)
    print(f"{found.model}, {found.precision}: {found.scored_tokens} tokens of {found.texts} held-out answers")
    for name, presets in found.methods.items():
        for preset in presets:
            settings = " ".join(f"{key}={value}" for key, value in preset.settings.items())
            speed = f", {preset.speedup:.2f}x as fast as dense" if preset.speedup else ""
            print(
                f"{name} {preset.name}: KL {preset.kl:.3f} nats/token, agreement {preset.agreement:.1%}, "
                f"byte bound {preset.byte_bound:.2f}x{speed}\n  {settings}"
            )
