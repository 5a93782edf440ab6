"""``calibrate``: what is known of a model before a prompt is read, kept for its races."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..calibration.sources import ANSWERS, PASSAGES
from ..support.progress import terminal_bar
from .arguments import TEXT, Commands, add_model


def add(commands: Commands) -> None:
    told = "find a model's thresholds, prior and sensitivities, and keep them for its races"
    calibrate = commands.add_parser("calibrate", help=told)
    add_model(calibrate)
    calibrate.add_argument(
        "--on",
        choices=[source.name for source in (ANSWERS, PASSAGES)],
        default=ANSWERS.name,
        help="the model's own answers, for races and generation (default), or passages, for `evaluate`",
    )
    calibrate.add_argument("--text", type=Path, metavar="FILE", help=f"these in the place of them: {TEXT}")
    calibrate.add_argument("--weighted", action="store_true", help="for the score times the output norm")
    calibrate.add_argument("--out", type=Path, metavar="FILE", help="write the table there instead of the user's cache")
    calibrate.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..calibration.documents import read_passages
    from ..calibration.sources import from_passages
    from ..calibration.thresholds import calibrate, kept_thresholds
    from ..methods import TDA, first_use
    from ..model.loading import load_model
    from ..support.environment import use_threads

    use_threads(options.threads)
    (use,) = (source for source in (ANSWERS, PASSAGES) if source.name == options.on)
    source = from_passages(read_passages(options.text)) if options.text else use
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        table = calibrate(lm, source, weighted=options.weighted, report=report)
        kept = kept_thresholds(lm, options.weighted, use)
        path = options.out or kept.path
        kept.save(table, path)
        if source is ANSWERS and options.out is None:  # what else a race needs
            first_use.calibrate(TDA(weighted=options.weighted), lm, report)
    print(f"{path}: {len(table.thresholds)} layers, {table.texts} texts ({table.data}), {table.tokens} tokens")
