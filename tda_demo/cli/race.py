"""``race``: the dense model against a method, and against a second one if asked, on one prompt."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..support.errors import UserError
from ..support.files import write_text
from ..support.progress import Progress, terminal_bar
from .arguments import Commands, add_json, add_method, add_model, add_preset, chosen_method, write_json

if TYPE_CHECKING:
    from ..methods import Method
    from ..race.result import RaceResult


def add(commands: Commands) -> None:
    race = commands.add_parser("race", help="race the dense model against a method on one prompt")
    race.add_argument("prompt", metavar="PROMPT", help="what both sides answer, in quotes")
    add_model(race)
    add_method(race)
    add_preset(race)
    race.add_argument("--rival", metavar="NAME", help="a second method, raced against the first at the same time")
    race.add_argument("--rival-set", action="append", default=[], metavar="K=V", help="a setting of it; repeatable")
    budget = race.add_mutually_exclusive_group()
    budget.add_argument(
        "--kl", type=float, metavar="NATS", help="set every method's dial to cost at most this KL a token, e.g. 0.2"
    )
    budget.add_argument(
        "--mlp-bytes",
        type=float,
        metavar="SHARE",
        help="set every method's dial to read at most this share of the MLP weight bytes, e.g. 0.6",
    )
    race.add_argument(
        "--max-new-tokens", type=int, default=128, metavar="N", help="tokens that a side writes at most; default 128"
    )
    race.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0, the default, is greedy")
    race.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens with this probability; default 1",
    )
    race.add_argument("--seed", type=int, default=0, metavar="S", help="of the draws, alike on all sides; default 0")
    add_json(race)
    race.add_argument("--report", type=Path, metavar="FILE", help="write the race there as self-contained HTML")
    race.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    from ..decode.choose import step_bytes
    from ..decode.cpu.compile_ahead import compile_ahead
    from ..evaluate.budget import within
    from ..model.loading import load_model
    from ..race import Finished, PromptRead, RaceSettings, Stepped, race
    from ..race.result import summary
    from ..report import race_report
    from ..report.race import RaceRecord, trace_of
    from ..stats.metrics import mlp_share_read
    from ..support.environment import use_threads

    method = chosen_method(options.method, options.preset, options.set)
    rival = _rival(options.rival, options.rival_set)
    _check_budget(options)
    _check_rival(method, rival)
    settings = RaceSettings(options.max_new_tokens, options.temperature, options.top_p, options.seed)
    result: RaceResult | None = None
    read: PromptRead | None = None
    steps: list[Stepped] = []
    use_threads(options.threads)
    with terminal_bar() as report:
        compile_ahead(options.model, options.precision, options.device)
        lm = load_model(options.model, precision=options.precision, device=options.device, report=report)
        if options.kl is not None or options.mlp_bytes is not None:
            spent = partial(within, lm, kl=options.kl, mlp_share=options.mlp_bytes, report=report)
            method, rival = spent(method), rival and spent(rival)
            _check_rival(method, rival)  # whose dials a budget may have made equal
        for event in race(lm, method, options.prompt, settings, report=report, rival=rival):
            if isinstance(event, PromptRead):
                read = event
            elif isinstance(event, Stepped):
                steps.append(event)
                report(Progress("Racing", len(steps), (3 if rival else 2) * settings.max_new_tokens, "tokens"))
            elif isinstance(event, Finished):
                result = event.result
    if lm.ignored:
        told = ", ".join(f"{name} {value}" for name, value in lm.ignored.items())
        print(f"tda_demo: not applied, to either side: {told}, of the model's generation_config.", file=sys.stderr)
    assert result is not None and read is not None, "a race begins with PromptRead and ends with Finished"
    if options.report:
        seen = [(step.text, step.fired) for step in steps if step.arm == "sparse" and step.fired is not None]
        neurons = step_bytes(lm)
        trace = trace_of(read, neurons.widths, [text for text, _ in seen], [fired for _, fired in seen])
        record = RaceRecord(
            options.prompt,
            asdict(settings),
            result,
            trace,
            mlp_share_read(result.dense.weight_bytes, result.byte_bound, neurons.mlp),
            rival_mlp_share=result.rival
            and mlp_share_read(result.dense.weight_bytes, result.rival.byte_bound, neurons.mlp),
        )
        write_text(options.report, race_report(record))
    if options.json is None:
        print(summary(result))
    else:
        write_json(result.to_json(), options.json)


def _check_budget(options: argparse.Namespace) -> None:
    """Raises UserError where no method could meet it, before minutes go into a curve."""
    if options.mlp_bytes is not None and not 0 <= options.mlp_bytes <= 1:
        raise UserError(
            f"--mlp-bytes is {options.mlp_bytes:g}; it must be a share of the MLP weight bytes, from 0 to 1."
        )
    if options.kl is not None and not options.kl >= 0:  # true for NaN too
        raise UserError(f"--kl is {options.kl:g}; it must be a number of nats per token, 0 or more.")


def _check_rival(method: Method, rival: Method | None) -> None:
    """Raises UserError where both are the same."""
    if rival == method:
        raise UserError(f"{method.name} in these settings cannot race itself: choose another --rival or --rival-set.")


def _rival(name: str | None, assignments: Sequence[str]) -> Method | None:
    from ..methods import make_method

    if name is None and assignments:
        raise UserError("--rival-set is a setting of the rival: name one with --rival.")
    return None if name is None else make_method(name, assignments)
