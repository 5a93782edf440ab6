"""``theory``: the paper's three claims, measured."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_text
from ..progress import Report, terminal_bar
from .shared import TEXT, Commands, add_json, add_model, add_threads, write_json

if TYPE_CHECKING:
    from ..models import LoadedModel
    from ..theory.findings import Finding

Experiment = Callable[[argparse.Namespace, Report], "Finding"]


def add(commands: Commands) -> None:
    theory = commands.add_parser("theory", help="measure the paper's claims about why activation is sparse")
    experiments = theory.add_subparsers(required=True, metavar="EXPERIMENT")
    cause = _add(experiments, "root-cause", _root_cause, "the loss gradient at positive activations")
    _add_text(cause)
    _add_count(cause, "passages", "texts to read")
    _add_count(cause, "tokens", "of each text")
    _add_count(cause, "twin-layers", "layers of the untrained models beside it, 0 for none")
    history = _add(experiments, "uncertainty", _uncertainty, "the same sentence after different histories")
    _add_count(history, "sentences", "how many")
    _add_count(history, "history", "tokens before each")
    _add_count(history, "predictor-layers", "layers that get a predictor, evenly spread")
    _add_keep(history)
    inertia = _add(experiments, "inertia", _inertia, "what came before against the token itself")
    _add_text(inertia)
    _add_count(inertia, "sequences", "natural ones, and as many random ones")
    _add_count(inertia, "length", "tokens of each")
    _add_count(inertia, "prompts", "texts to go on with")
    _add_count(inertia, "tokens", "generated after each prompt")
    _add_keep(inertia)
    training = _add(experiments, "training", _training, "a small model from scratch, ReLU against SiLU", model=False)
    _add_count(training, "steps", "of each run")
    _add_count(training, "runs", "of each activation function, from different seeds")


def run(options: argparse.Namespace) -> None:
    from ..environment import use_threads
    from ..report.theory import theory_report
    from ..theory.findings import summary

    use_threads(options.threads)
    with terminal_bar() as report:
        finding = options.experiment(options, report)
    if options.json is not None:
        write_json(finding.to_json(), options.json)
    if options.report is not None:
        write_text(options.report, theory_report(finding))
    if options.json != "-":
        print(summary(finding))


def _root_cause(options: argparse.Namespace, report: Report) -> Finding:
    from ..theory.root_cause import root_cause
    from ..theory.settings import RootCauseSettings

    settings = RootCauseSettings(**_given(options, "passages", "tokens", "twin_layers", "seed"))
    texts = _texts(options)
    return root_cause(_model(options, report), settings, texts, report)


def _uncertainty(options: argparse.Namespace, report: Report) -> Finding:
    from ..theory.settings import UncertaintySettings
    from ..theory.uncertainty import uncertainty

    settings = UncertaintySettings(**_given(options, "sentences", "history", "keep", "predictor_layers", "seed"))
    return uncertainty(_model(options, report), settings, report)


def _inertia(options: argparse.Namespace, report: Report) -> Finding:
    from ..theory.inertia import inertia
    from ..theory.settings import InertiaSettings

    settings = InertiaSettings(**_given(options, "sequences", "length", "prompts", "tokens", "keep", "seed"))
    texts = _texts(options)
    return inertia(_model(options, report), settings, texts, report)


def _training(options: argparse.Namespace, report: Report) -> Finding:
    from ..theory.settings import TrainingSettings
    from ..theory.training import training

    return training(TrainingSettings(**_given(options, "steps", "runs", "seed")), report=report)


def _add(
    experiments: Commands, name: str, experiment: Experiment, what: str, *, model: bool = True
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = experiments.add_parser(name, help=what)
    (add_model if model else add_threads)(parser)
    _add_count(parser, "seed", "the same seed gives the same numbers")
    add_json(parser)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write it there as self-contained HTML too")
    parser.set_defaults(run=run, experiment=experiment)
    return parser


def _add_count(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(f"--{name}", type=int, metavar="N", help=what)


def _add_keep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", type=float, metavar="SHARE", help="of the neurons that counts as active")


def _add_text(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", type=Path, metavar="FILE", help=f"{TEXT}; a single text is cut into pieces")


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The settings given; the experiment's own defaults stand for the rest."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _texts(options: argparse.Namespace) -> tuple[str, ...] | str | None:
    """The file's documents; a single one as a str, which the experiments cut into pieces."""
    from ..calibration.passages import read_passages

    if not options.text:
        return None
    texts = read_passages(options.text).texts
    return texts[0] if len(texts) == 1 else texts


def _model(options: argparse.Namespace, report: Report) -> LoadedModel:
    from ..models import load_model

    return load_model(options.model, precision=options.precision, device=options.device, report=report)
