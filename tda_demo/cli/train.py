"""``train``: what a trained method needs for a model, kept for its races."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from statistics import fmean

from ..support.progress import terminal_bar
from .arguments import Commands, add_json, add_model, write_json


def add(commands: Commands) -> None:
    train = commands.add_parser("train", help="train what dejavu or moefication needs for a model, and keep it")
    train.add_argument("method", choices=("dejavu", "moefication"), help="what to train")
    train.add_argument("--set", action="append", default=[], metavar="K=V", help="a setting, e.g. rank=64; repeatable")
    add_model(train)
    add_json(train)
    train.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..methods import DejaVu, MoEfication, make_method
    from ..methods.trained.artefact import path_of
    from ..methods.trained.training import trained_artefact
    from ..model.loading import load_model
    from ..support.environment import use_threads

    method = make_method(options.method, options.set)
    assert isinstance(method, DejaVu | MoEfication), "the parser offers no other"
    use_threads(options.threads)
    with terminal_bar() as report:
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        about = trained_artefact(lm, method.recipe, report).about
    if options.json is not None:
        write_json(asdict(about), options.json)
    if options.json != "-":
        recall = fmean(max(layer) for layer in about.recall)
        print(f"{path_of(lm, method.recipe)}: {about.note}, recall {recall:.1%} on held-out text (mean over layers)")
