"""``theory``: the paper's claims, measured. One subcommand for every experiment of the registry."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.files import write_text
from ..support.progress import Report, terminal_bar
from ..theory import EXPERIMENTS, Experiment
from .arguments import TEXT, Commands, add_json, add_model, add_threads, write_json

if TYPE_CHECKING:
    from ..model.loading import LoadedModel


def add(commands: Commands) -> None:
    theory = commands.add_parser("theory", help="measure the paper's claims about why activation is sparse")
    experiments = theory.add_subparsers(required=True, metavar="EXPERIMENT")
    for experiment in EXPERIMENTS.values():
        _add(experiments, experiment)


def run(options: argparse.Namespace) -> None:
    from ..report.theory import theory_report
    from ..support.environment import use_threads
    from ..theory.findings import summary

    use_threads(options.threads)
    with terminal_bar() as report:
        experiment = _experiment(options)
        text = _text(options) if experiment.text_use else None
        lm = _model(options, report) if experiment.uses_model else None
        finding = experiment.run(lm, text, report)
    if options.json is not None:
        write_json(finding.to_json(), options.json)
    if options.report is not None:
        write_text(options.report, theory_report(finding))
    if options.json != "-":
        print(summary(finding))


def _add(experiments: Commands, experiment: type[Experiment]) -> None:
    parser: argparse.ArgumentParser = experiments.add_parser(experiment.name, help=experiment.summary)
    (add_model if experiment.uses_model else add_threads)(parser)
    add_json(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write it there as self-contained HTML too")
    if experiment.text_use:
        parser.add_argument("--text", type=Path, metavar="FILE", help=f"{TEXT}; a single text is cut into pieces")
    for field in dataclasses.fields(experiment):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=type(field.default),
            metavar=field.metadata["metavar"],
            help=field.metadata["explanation"],
        )
    parser.set_defaults(run=run, experiment=experiment)


def _experiment(options: argparse.Namespace) -> Experiment:
    """The experiment with the settings given; its own defaults stand for the rest.

    Raises:
        UserError: a setting is out of its range.
    """
    kind: type[Experiment] = options.experiment
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in given.items() if value is not None})


def _text(options: argparse.Namespace) -> tuple[str, ...] | str | None:
    """The file's documents; a single one as a str, which the experiments cut into pieces."""
    from ..calibration.documents import read_passages

    if not options.text:
        return None
    texts = read_passages(options.text).texts
    return texts[0] if len(texts) == 1 else texts


def _model(options: argparse.Namespace, report: Report) -> LoadedModel:
    from ..model.loading import load_model

    return load_model(options.model, precision=options.precision, device=options.device, report=report)
